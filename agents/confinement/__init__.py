"""How a forked child enters a container and gives up what it does not need."""
