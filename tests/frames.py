"""The frames of a packet, in a list."""

from __future__ import annotations

from typing import NamedTuple

from nsbridge.agents import wire
from nsbridge.agents.wire import Data, Hello, Names, Run


class Ack(NamedTuple):
    """An ACK frame."""

    epoch: int
    seq: int


Frame = Hello | Data | Run | Ack | Names


class Frames:
    """See wire.Receiver. Keeps what it gets in `came`."""

    def __init__(self) -> None:
        self.came: list[Frame] = []

    def run(self, run: Run) -> None:
        """See wire.Receiver."""
        self.came.append(run)

    def data(self, data: Data) -> None:
        """See wire.Receiver."""
        self.came.append(data)

    def names(self, names: Names) -> None:
        """See wire.Receiver."""
        self.came.append(names)

    def hello(self, hello: Hello) -> None:
        """See wire.Receiver."""
        self.came.append(hello)

    def ack(self, epoch: int, seq: int) -> None:
        """See wire.Receiver."""
        self.came.append(Ack(epoch, seq))


def parsed(packet: bytes) -> list[Frame]:
    """Return the frames of a packet. Raises WireError."""
    frames = Frames()
    wire.parse(packet, frames)
    return frames.came
