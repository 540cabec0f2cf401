"""A hostile peer: what it sends is taken or refused by WireError, and a session never holds more than its bounds.

The bound of what one session holds for its peer: `window.bytes` and one message in `waiting` (at most
`window.messages`), one message in pieces, each message at most MAX_MESSAGE; and never more than was really sent,
because the length that a frame announces allocates nothing.
"""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from nsbridge.agents import control, wire
from nsbridge.agents.incoming import Incoming
from nsbridge.agents.outgoing import Outgoing
from nsbridge.agents.session import Session
from nsbridge.agents.wire import Data, Hello, Message, Names, Run, WireError
from nsbridge.config.filenames import is_file_name
from nsbridge.config.schema import Window
from tests.frames import Ack, Frame, parsed
from tests.memory_store import MemorySink, MemorySource, hand_over_one

WINDOW = Window(messages=3, bytes=500)
NONCE, EPOCH = 5, 7  # of the session that is attacked
u64 = st.integers(0, (1 << 64) - 1)
seqs = st.one_of(st.integers(0, 8), st.integers(0, wire.MAX_SEQ))  # mostly what the session may believe
near = st.one_of(st.integers(0, 8), u64)
types = st.integers(0, (1 << 63) - 1)
epochs = st.one_of(st.integers(0, 8), st.integers(0, wire.MAX_EPOCH))  # a greeting with a larger one is refused


def pack(frame: Frame) -> bytes:
    if isinstance(frame, Hello):
        return wire.pack_hello(frame)
    if isinstance(frame, Ack):
        return wire.pack_ack(*frame)
    if isinstance(frame, Run):
        return b"".join(wire.pack_run(frame))
    if isinstance(frame, Names):
        bodies = [b""] * len(frame.names)
        return b"".join(wire.pack_names(Run(frame.epoch, frame.first, 0, bodies, frame.names)))
    header = bytearray(
        wire.pack_data_header(frame.epoch, frame.seq, Message(frame.type, b""), frame.offset, len(frame.piece))
    )
    header[32:36] = frame.total.to_bytes(4, "little")
    return bytes(header) + frame.piece


@st.composite
def pieces(draw: st.DrawFn) -> Data:
    """Draw a valid frame; offsets often fit to what may have come before."""
    piece = draw(st.binary(max_size=200))
    offset = draw(st.one_of(st.just(0), st.integers(0, 400), st.integers(0, wire.MAX_MESSAGE - 200)))
    least = offset + len(piece)
    total = draw(st.one_of(st.just(least), st.integers(least, least + 300), st.integers(least, wire.MAX_MESSAGE)))
    return Data(draw(near), draw(seqs.filter(bool)), draw(types), min(total, wire.MAX_MESSAGE), offset, piece)


hellos = st.builds(Hello, near, st.sampled_from([0, NONCE, 6]), epochs, seqs, st.sampled_from([0, EPOCH, 8]), seqs)
bodies = st.lists(st.binary(max_size=200), min_size=1, max_size=4)
firsts = seqs.filter(lambda seq: 0 < seq < wire.MAX_SEQ - 4)
runs = st.builds(Run, near, firsts, types, bodies, st.just(()), st.none())
acks = st.builds(Ack, st.sampled_from([EPOCH, 1]), seqs)
file_names = st.one_of(st.just(b""), st.binary(min_size=1, max_size=255).filter(is_file_name))
named = st.lists(file_names, min_size=1, max_size=4).filter(any)
frames: st.SearchStrategy[Frame] = st.one_of(hellos, pieces(), runs, acks, st.builds(Names, near, firsts, named))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Draw whole frames with some bytes changed, cut off or added."""
    packet = bytearray(b"".join(map(pack, draw(st.lists(frames, min_size=1, max_size=4)))))
    for _ in range(draw(st.integers(0, 4))):
        packet[draw(st.integers(0, len(packet) - 1))] = draw(st.integers(0, 255))
    return bytes(packet[: draw(st.integers(0, len(packet)))]) + draw(st.binary(max_size=8))


@given(st.lists(frames, min_size=1))
def test_frames_come_back_as_they_were_packed(sent: list[Frame]) -> None:
    assert parsed(b"".join(map(pack, sent))) == sent


@settings(max_examples=500)
@given(st.one_of(st.binary(max_size=300), mutated()))
def test_a_packet_is_parsed_or_refused(packet: bytes) -> None:
    try:
        got = parsed(packet)
    except WireError:
        return
    assert sum(len(pack(frame)) for frame in got) == len(packet)


def attacked() -> Session:
    """Return a session in the middle of its life, greeted, with something taken."""
    source = MemorySource(EPOCH)
    session = Session(NONCE, Outgoing(source, WINDOW), Incoming(MemorySink(), WINDOW, keeps_names=True))
    session.next_packet()
    session.receive(wire.pack_hello(Hello(9, NONCE, 1, 0, 0, 0)))
    for size in (0, 10, 100):
        source.append(Message(1, bytes(size)))
    return session


def held_bytes(session: Session) -> int:
    """Return what the session holds for its peer, after a look at its bounds."""
    incoming = session.incoming
    assert incoming is not None
    bodies = [len(body) for run in incoming.waiting for body in run.bodies]
    assert all(is_file_name(name) for run in incoming.waiting for name in run.names if name)
    assert all(len(run.names) in (0, len(run.bodies)) for run in incoming.waiting)
    assert len(bodies) <= WINDOW.messages
    assert sum(bodies[:-1]) < WINDOW.bytes
    assert len(incoming._partial) < wire.MAX_MESSAGE
    return sum(bodies) + len(incoming._partial)


@settings(max_examples=500)
@given(st.lists(st.one_of(mutated(), frames.map(pack), st.binary(max_size=100)), max_size=30), st.data())
def test_a_session_takes_or_refuses_whatever_its_peer_sends(packets: list[bytes], data: st.DataObject) -> None:
    session, received = attacked(), 0
    for packet in packets:
        received += len(packet)
        try:
            session.receive(packet)
        except WireError:
            return  # the agent ends
        assert held_bytes(session) <= received
        if data.draw(st.booleans()):
            drain(session)


def drain(session: Session) -> None:
    """Do as an agent does after receiving; it comes to an end."""
    incoming = session.incoming
    assert incoming is not None
    while incoming.waiting:
        hand_over_one(incoming)
    for _ in range(10):
        packet = session.next_packet()
        assert len(packet) <= wire.MAX_PACKET
        if not packet:
            return
    raise AssertionError("a session that sends without end")


@settings(max_examples=20)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=20), st.integers(0, 300))
def test_a_message_in_pieces_grows_no_larger_than_it_says(lengths: list[int], more: int) -> None:
    session = attacked()
    total, offset = sum(lengths) + more, 0
    for length in lengths:
        session.receive(pack(Data(1, 1, 1, total, offset, bytes(length))))
        offset += length
        assert held_bytes(session) == offset <= total
    assert session.incoming is not None
    assert bool(session.incoming.waiting) == (more == 0)


def test_pieces_grow_no_larger_than_the_largest_message() -> None:
    """The peer says another total in each piece, always beyond what it has sent."""
    session, offset, size = attacked(), 0, 60_000
    while offset + size < wire.MAX_MESSAGE:
        session.receive(pack(Data(1, 1, 1, offset + size + 1, offset, bytes(size))))
        offset += size
    assert held_bytes(session) == offset
    try:
        session.receive(pack(Data(1, 1, 1, offset + size + 1, offset, bytes(size))))
    except WireError:
        return
    raise AssertionError("a message of more than MAX_MESSAGE bytes")


def test_announcing_a_large_message_allocates_nothing() -> None:
    session = attacked()
    for seq in range(1, 1000):
        session.receive(pack(Data(1, seq, 1, wire.MAX_MESSAGE, 0, b"")))
    assert held_bytes(session) == 0


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=5,
)
said = st.fixed_dictionaries(
    {"report": st.one_of(st.sampled_from(["log", "ready", "error"]), json_values)},
    optional={"level": st.one_of(st.sampled_from(["info", "fatal"]), json_values), "text": json_values},
)


@settings(max_examples=300)
@given(st.one_of(st.binary(), json_values, said, said))
def test_any_control_datagram_is_an_object_or_nothing(sent: object) -> None:
    datagram = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    fields = control.parse(datagram)
    assert fields == {} or isinstance(sent, dict)
    assert fields.get("report") != "log" or fields["level"] in ("debug", "info", "warning", "error")
