"""The cells of a source's journal that belong to a socket (agents/journal/). A number never changes."""

BOUND_INODE, BOUND_BORN = 48, 49  # of the socket's file that an agent has bound last: its inode and time of birth

SOURCE_CELLS = (BOUND_INODE, BOUND_BORN)
