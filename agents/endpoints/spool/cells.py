"""The cells of a sink's journal that belong to a spool (agents/journal/sinkjournal.py). A number never changes."""

HIDDEN = 36  # the token in the name of a file that is being written
NAMED, NAMED_FOR = 37, 38  # the epoch in the names, and the source's epoch that it is for; kept as long as the journal

SINK_CELLS = (HIDDEN, NAMED, NAMED_FOR)
