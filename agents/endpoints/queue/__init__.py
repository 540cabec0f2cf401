"""A SysV message queue."""
