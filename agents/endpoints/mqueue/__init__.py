"""A POSIX message queue."""
