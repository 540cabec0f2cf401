"""The control socket: who may ask, what they may ask, and the answers."""
