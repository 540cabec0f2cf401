"""The demonstration: two containers, two programs, the bridge between, in one command."""
