"""The cells of a sink's journal that belong to a POSIX queue (agents/journal/). A number never changes."""

LARGEST, LARGEST_OF = 48, 49  # the largest mq_msgsize of a queue with this name that was seen, and a number of the name

SINK_CELLS = (LARGEST, LARGEST_OF)
