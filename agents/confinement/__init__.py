"""Entry of a forked child into a container: it joins one namespace and gives up what it does not need."""
