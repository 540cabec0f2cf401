"""The cells of the journals that belong to a log (agents/journal/). A number never changes."""

from nsbridge.agents.journal.sourcejournal import MISSED, MISSED_SLOT

LOG_POSITION, LOG_TRUNCATIONS = 5, 15  # of a source: ten cells and one (tail.py)
# Of a source: two slots of four cells, 0 in older journals (tail.py). The last two of each are MISSED.
LOG_MORE, LOG_MORE_SLOT = MISSED - 2, MISSED_SLOT
LOG_APPEND = 19  # of a sink: eleven cells (sink.py)

SOURCE_CELLS = (*range(LOG_POSITION, LOG_TRUNCATIONS + 1), LOG_MORE, LOG_MORE + 1, LOG_MORE + 4, LOG_MORE + 5)
SINK_CELLS = range(LOG_APPEND, LOG_APPEND + 11)
