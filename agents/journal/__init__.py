"""The files in which an agent keeps what it has taken and handed over."""
