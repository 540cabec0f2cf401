"""The cells of the journals that belong to a spool (agents/journal/). A number never changes."""

HIDDEN = 36  # of a sink: the token in the name of a file that is being written
NAMED = 37  # of a sink: the epoch in the names; kept as long as the journal
NAMED_FOR = 38  # the source's epoch that it is for
WAITING = 44  # of a source: how far the names that wait were taken (agents/journal/waitinglist.py)
COUNTED = range(64, 192)  # of a source: the refused files that were counted last (refused.py)

SOURCE_CELLS = (WAITING, *COUNTED)
SINK_CELLS = (HIDDEN, NAMED, NAMED_FOR)
