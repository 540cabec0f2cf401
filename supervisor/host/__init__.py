"""Host of the supervisor: processes, /proc, limits, pid file, children."""
