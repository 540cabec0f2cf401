"""The cells of a journal, most of a sink's, that belong to a queue (agents/journal/). A number never changes."""

SENDERS = 16  # two: the pids of the processes that sent last
BASELINE = 18
PREDECESSOR, LATEST = 19, 20  # checksums of the message before the one that was offered last, and of it
LARGEST, LARGEST_OF = 21, 22  # the largest limit that was seen, and that queue's id + 1
BEGUN = 44  # the sender that was about to send last, and the seq (evidence.py); 0 in journals of earlier versions
MADE = 62  # also of a source: the id + 1 of the queue that the agent has made and no program has used (unused.py)

SINK_CELLS = (*range(SENDERS, LARGEST_OF + 1), BEGUN, MADE)
SOURCE_CELLS = (MADE,)
