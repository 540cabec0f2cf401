"""The cells of a sink's journal that belong to a queue (agents/journal/sinkjournal.py). A number never changes."""

SENDERS = 16  # two: the pids of the processes that sent last
BASELINE = 18
PREDECESSOR, LATEST = 19, 20  # checksums of the message before the one that was offered last, and of it
LARGEST, LARGEST_OF = 21, 22  # the largest limit that was seen, and that queue's id + 1

SINK_CELLS = range(SENDERS, LARGEST_OF + 1)
