"""The cells of a journal that belong to a NATS endpoint (agents/journal/). A number never changes."""

# Of a source: two slots by the parity of the last message taken, each with its sequence in the stream, the stream, and
# the time when it was stored (0: not known).
SEQUENCE, STREAM, TIME = 56, 58, 60

# Of a sink: which epoch's messages it has begun to publish, and up to which one; the sequence in the stream of the last
# one that the server confirmed, and the stream; 0: not known.
BEGUN_EPOCH, BEGUN, CONFIRMED_AT, CONFIRMED_IN = 56, 57, 58, 59

SOURCE_CELLS = (SEQUENCE, SEQUENCE + 1, STREAM, STREAM + 1, TIME, TIME + 1)
SINK_CELLS = (BEGUN_EPOCH, BEGUN, CONFIRMED_AT, CONFIRMED_IN)
