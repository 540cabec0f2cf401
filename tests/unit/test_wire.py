"""The frames: their bytes, and what is refused."""

from __future__ import annotations

import pytest

from nsbridge.agents import wire
from nsbridge.agents.wire import Data, Hello, Message, Names, Run, WireError
from tests.frames import Ack, Frames, parsed

HELLO = Hello(nonce=1, answers=2, out_epoch=3, out_confirmed=4, in_epoch=5, in_handed=6)


def data(body: bytes, offset: int = 0, total: int | None = None, seq: int = 1, mtype: int = 9) -> bytes:
    """Return a DATA frame; `total` may lie."""
    frame = bytearray(wire.pack_data_header(7, seq, Message(mtype, b""), offset, len(body)))
    frame[32:36] = (offset + len(body) if total is None else total).to_bytes(4, "little")
    return bytes(frame) + body


def run(*bodies: bytes, first: int = 1, mtype: int = 9, count: int | None = None) -> bytes:
    """Return a RUN frame; `count` may lie."""
    frame = bytearray(b"".join(wire.pack_run(Run(7, first, mtype, bodies))))
    frame[4:8] = (len(bodies) if count is None else count).to_bytes(4, "little")
    return bytes(frame)


def names(*given: bytes, first: int = 1, count: int | None = None) -> bytes:
    """Return a NAMES frame; `count` may lie."""
    frame = bytearray(b"".join(wire.pack_names(Run(7, first, 9, [b""] * len(given), given))))
    frame[4:8] = (len(given) if count is None else count).to_bytes(4, "little")
    return bytes(frame)


def test_hello_keeps_its_bytes() -> None:
    packed = wire.pack_hello(HELLO)
    assert packed[:2] == b"\x01\x02"
    assert packed[8:] == b"".join(number.to_bytes(8, "little") for number in range(1, 7))
    assert parsed(packed) == [HELLO]


def test_ack_keeps_its_bytes() -> None:
    packed = wire.pack_ack(0x0102, wire.MAX_SEQ)
    assert packed == b"\x03" + bytes(7) + b"\x02\x01" + bytes(6) + b"\xff" * 5 + b"\x7f\0\0"
    assert parsed(packed) == [Ack(0x0102, wire.MAX_SEQ)]


def test_data_keeps_its_bytes() -> None:
    packed = wire.pack_data_header(7, 8, Message(9, b"abcdef"), 2, 3)
    assert len(packed) == wire.DATA_OVERHEAD
    numbers = [(3, 4), (7, 8), (8, 8), (9, 8), (6, 4), (2, 4)]
    assert packed == b"\x02\0\0\0" + b"".join(number.to_bytes(size, "little") for number, size in numbers)
    assert parsed(packed + b"cde") == [Data(7, 8, 9, 6, 2, b"cde")]


def test_a_run_keeps_its_bytes() -> None:
    packed = b"".join(wire.pack_run(Run(7, 8, 9, (b"a", b"", b"bcd"))))
    numbers = [(4, 4), (3, 4), (7, 8), (8, 8), (9, 8), (1, 4), (0, 4), (3, 4)]
    assert packed == b"".join(number.to_bytes(size, "little") for number, size in numbers) + b"abcd"
    assert len(packed) == wire.RUN_OVERHEAD + 3 * wire.RUN_MESSAGE_OVERHEAD + 4
    assert parsed(packed) == [Run(7, 8, 9, [b"a", b"", b"bcd"])]


def test_names_keep_their_bytes() -> None:
    packed = names(b"a", b"", b"b\n" + b"\xff" * 253, first=8)
    numbers = [(5, 4), (3, 4), (7, 8), (8, 8), (1, 1), (0, 1), (255, 1)]
    assert packed == b"".join(number.to_bytes(size, "little") for number, size in numbers) + b"ab\n" + b"\xff" * 253
    assert parsed(packed) == [Names(7, 8, [b"a", b"", b"b\n" + b"\xff" * 253])]


def test_messages_without_names_have_no_such_frame() -> None:
    assert wire.pack_names(Run(7, 8, 9, (b"a", b"b"), (b"", b""))) == []


def test_frames_of_one_packet_come_in_order() -> None:
    packet = wire.pack_hello(HELLO) + data(b"") + wire.pack_ack(1, 2) + data(b"xyz", seq=2)
    assert parsed(packet) == [HELLO, Data(7, 1, 9, 0, 0, b""), Ack(1, 2), Data(7, 2, 9, 3, 0, b"xyz")]


def test_a_packet_of_the_full_size_is_taken() -> None:
    packet = data(bytes(wire.MAX_PACKET - wire.DATA_OVERHEAD))
    assert len(packet) == wire.MAX_PACKET
    assert len(parsed(packet)) == 1


@pytest.mark.parametrize(
    ("packet", "says"),
    [
        (b"", "a packet of 0 bytes"),
        (bytes(wire.MAX_PACKET + 1), "a packet of 65537 bytes"),
        (b"\0", "unknown kind 0"),
        (b"\x06" + bytes(60), "unknown kind 6"),
        (b"\x05" + bytes(60), "0 names from message 0"),
        (names(b"a")[:-1], "1 names from message 1, cut short or of no file"),
        (names(b"a")[:23], "kind 5 cut short"),
        (names(b"a", count=0), "0 names from message 1"),
        (names(b"a", count=9), "9 names from message 1, cut short"),
        (names(b"a", first=0), "1 names from message 0"),
        (names(b"a", b"b", first=wire.MAX_SEQ), f"message number {wire.MAX_SEQ + 1}"),
        *((names(b"a", bad), "of no file") for bad in (b"..", b".", b".a", b"a/b", b"/", b"a\0b", b"../x")),
        (wire.pack_hello(HELLO)[:-1], "kind 1 cut short"),
        (wire.pack_ack(1, 1)[:-1], "kind 3 cut short"),
        (data(b"")[:-1], "kind 2 cut short"),
        (data(b"abc")[:-1], "3 bytes at 0 of 3"),
        (wire.pack_ack(1, 1) + b"\x02", "kind 2 cut short"),
        (b"\x01\x01" + wire.pack_hello(HELLO)[2:], "protocol version 1, this is version 2"),
        (data(b"abc", offset=2, total=4), "3 bytes at 2 of 4"),
        (data(b"abc", total=wire.MAX_MESSAGE + 1), f"of {wire.MAX_MESSAGE + 1}"),
        (data(b"abc", mtype=-2), "type -2"),
        (data(b"abc", seq=0), "a data frame"),
        (data(b"abc", seq=wire.MAX_SEQ + 1), f"message number {wire.MAX_SEQ + 1}"),
        (wire.pack_ack(1, wire.MAX_SEQ + 1), f"message number {wire.MAX_SEQ + 1}"),
        (wire.pack_hello(HELLO._replace(out_confirmed=wire.MAX_SEQ + 1)), f"message number {wire.MAX_SEQ + 1}"),
        (wire.pack_hello(HELLO._replace(in_handed=(1 << 64) - 1)), f"message number {(1 << 64) - 1}"),
        (run(b"abc")[:-1], "a run of 1 messages with 3 bytes, cut short"),
        (run(b"abc", b"")[:36], "kind 4 cut short"),
        (run()[:32], "a run of 0 messages from 1"),
        (run(count=1 << 31), f"a run of {1 << 31} messages"),
        (run(b"", first=0), "from 0"),
        (run(b"", mtype=-2), "type -2"),
        (run(b"", b"", first=wire.MAX_SEQ), f"message number {wire.MAX_SEQ + 1}"),
    ],
)
def test_what_is_no_frame_is_refused(packet: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        parsed(packet)


def test_a_void_message_is_taken() -> None:
    packet = wire.pack_data_header(7, 8, wire.VOID, 0, 0)
    assert parsed(packet) == [Data(7, 8, -1, 0, 0, b"")]


def test_a_message_of_the_full_size_is_taken() -> None:
    assert parsed(data(b"a", offset=wire.MAX_MESSAGE - 1)) == [
        Data(7, 1, 9, wire.MAX_MESSAGE, wire.MAX_MESSAGE - 1, b"a")
    ]


def test_frames_before_a_bad_one_are_not_lost() -> None:
    frames = Frames()
    with pytest.raises(WireError):
        wire.parse(wire.pack_ack(1, 2) + b"\xff", frames)
    assert frames.came == [Ack(1, 2)]
