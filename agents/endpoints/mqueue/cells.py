"""The cells of the journals that belong to a POSIX queue (agents/journal/). A number never changes."""

# Of a sink: the largest mq_msgsize of a queue with this name that was seen, and a number of the name
LARGEST, LARGEST_OF = 48, 49

MADE = 63  # the inode + 1 of the queue that the agent has made and no program has used (endpoints/unused.py)

SINK_CELLS = (LARGEST, LARGEST_OF, MADE)
SOURCE_CELLS = (MADE,)
