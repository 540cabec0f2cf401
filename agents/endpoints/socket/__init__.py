"""A Unix socket."""
