"""What the supervisor uses of its own host: processes, /proc, limits, pid file, children."""
