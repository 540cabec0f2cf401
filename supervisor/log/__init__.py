"""The log, how repeated lines are counted, and the stream of events."""
