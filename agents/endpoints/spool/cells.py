"""The cells of the journals that belong to a spool (agents/journal/). A number never changes."""

HIDDEN = 36  # of a sink: the token in the name of a file that is being written
NAMED, NAMED_FOR = (
    37,
    38,
)  # of a sink: the epoch in the names, and the source's epoch that it is for; kept as long as the journal
WAITING = 44  # of a source: how far the names that wait were taken (agents/journal/waitinglist.py)

SOURCE_CELLS = (WAITING,)
SINK_CELLS = (HIDDEN, NAMED, NAMED_FOR)

# Of a source: the refused files that were counted last (refused.py)
COUNTED = range(64, 192)
SOURCE_CELLS = tuple(COUNTED)
