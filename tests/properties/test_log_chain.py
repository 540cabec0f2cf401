"""The chain of generations as a model: any order of rotations, late writes, compression, looks, stalls and kills.

The world below knows what truly happened. The reader knows what the model reports, and what the world lets it open.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nsbridge.agents.endpoints.log.model import HELD, Chain, LogFile, LogFileId, Missed, after
from nsbridge.agents.endpoints.log.names import Form, age, names_of

NAMES = names_of(b"app.log")
NOTHING = Missed(0)


@dataclass
class File:
    """A real generation. With an empty name it is gone; a compressed one cannot be read by its name."""

    who: LogFileId
    changed: int
    name: bytes
    size: int = 1
    finished: bool = False


class ChainMachine(RuleBasedStateMachine):
    """Reads each file whole when it is its turn: partial reads are not the chain's concern."""

    @initialize()
    def begin(self) -> None:
        self.clock = 1
        self.files: list[File] = []  # all there ever were, in the order of their arrival
        self.free: list[int] = []  # inodes of deleted files, which are used again
        self.arrivals = 0  # not reported yet
        self.read: list[LogFileId] = []
        self.missed = 0
        self.is_exact = True
        self.chain = Chain()
        self.held: set[LogFileId] = set()
        self.arrive()
        self.arrivals = 0
        self.chain.begin(None, self.path(), NOTHING, ())
        self.resume()

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def arrive(self) -> None:
        inode = self.free.pop() if self.free else 100 + len(self.files)
        self.files.append(File(LogFileId(inode, self.tick()), self.clock, b"app.log"))
        self.arrivals += 1

    def path(self) -> LogFileId | None:
        return next((file.who for file in self.files if file.name == b"app.log"), None)

    def seen(self) -> list[LogFile]:
        return [
            LogFile(file.who, file.changed, file.size, NAMES.form(file.name), age(b"app.log", file.name), file.name)
            for file in self.files
            if file.name and NAMES.form(file.name) is not Form.OTHER
        ]

    def of(self, who: LogFileId) -> File:
        return next(file for file in self.files if file.who == who)

    # What the container does

    @rule(recreates=st.booleans())
    def rotate(self, recreates: bool) -> None:
        for file in sorted(self.files, key=lambda file: -age(b"app.log", file.name)):
            number = age(b"app.log", file.name)
            if number:
                file.name = file.name.replace(b".%d" % number, b".%d" % (number + 1))
            elif file.name == b"app.log":
                file.name = b"app.log.1"
        if recreates:
            self.arrive()

    @precondition(lambda self: self.path() is None)
    @rule()
    def program_makes_its_file(self) -> None:
        self.arrive()

    @rule(data=st.data())
    def write_late(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.files)).changed = self.tick()

    @rule(data=st.data())
    def compress(self, data: st.DataObject) -> None:
        self.take_away(data, b".gz")

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self.take_away(data, b"")

    def take_away(self, data: st.DataObject, suffix: bytes) -> None:
        rotated = [file for file in self.files if file.name and file.name != b"app.log" and b"gz" not in file.name]
        if rotated:
            file = data.draw(st.sampled_from(rotated))
            file.name = file.name + suffix if suffix else b""
            if file.who not in self.held and file.who != self.chain.current:
                self.free.append(file.who.inode)  # nobody has it open

    # What the agent does

    @rule()
    def look(self) -> None:
        self.chain.look(self.path(), self.arrivals, self.seen)
        self.arrivals = 0
        for who in self.chain.held():
            if who not in self.held and self.is_readable(who):
                self.held.add(who)

    def is_readable(self, who: LogFileId) -> bool:
        return self.of(who).name != b"" and b"gz" not in self.of(who).name

    @rule()
    def resume(self) -> None:
        """Read what can be read, as long as the file that is read is not at the path."""
        while self.chain and (self.chain.current is None or self.chain.current != self.path()):
            one = self.chain.next()
            if isinstance(one, LogFileId) and one not in self.held and not self.is_readable(one):
                self.chain.give_up()
                one = self.chain.next()
            if isinstance(one, Missed):
                self.missed += one.files
            elif one is not None:
                self.read.append(one)
            self.chain.advance()
            self.held.discard(one)

    @rule()
    def kill(self) -> None:
        """Kill the agent: descriptors and counts are gone; a new one has the position and the directory."""
        position = self.chain.current
        assert position is not None
        found = next((one for one in self.seen_with_path() if one.who == position and one.form is not None), None)
        readable = found if found is not None and self.is_readable(position) else None
        path = next((one for one in self.seen_with_path() if one.name == b"app.log"), None)
        follow = after(position, position.born, readable, path, self.seen())
        self.chain, self.held, self.arrivals = Chain(), set(), 0
        self.is_exact = False
        self.chain.begin(position if readable else None, path and path.who, NOTHING, follow)
        if not readable:
            self.chain.begin(None, path and path.who, NOTHING, follow)
            self.chain.current = None
        self.look()
        if self.chain.current is None:
            self.resume()
        if self.chain.current is None:
            self.chain.current = position

    @rule(late=st.lists(st.integers(0, 5), max_size=4), count=st.integers(2, 4))
    def kill_during_rotations(self, late: list[int], count: int) -> None:
        """Kill the agent; while it is dead several files are rotated, and written into late."""
        for _ in range(count):
            self.rotate(True)
        for back in late:
            if back < len(self.files):
                self.files[-1 - back].changed = self.tick()
        self.kill()

    def seen_with_path(self) -> list[LogFile]:
        return [
            LogFile(file.who, file.changed, file.size, NAMES.form(file.name), age(b"app.log", file.name), file.name)
            for file in self.files
            if file.name
        ]

    @invariant()
    def each_is_read_once_in_the_order_of_arrival(self) -> None:
        if hasattr(self, "read"):
            order = [file.who for file in self.files if file.who in set(self.read)]
            assert self.read == order

    def teardown(self) -> None:
        if not hasattr(self, "chain"):
            return
        self.look()
        self.resume()
        if self.path() is None:
            self.arrive()
            self.look()
            self.resume()
        unread = [file for file in self.files if file.who not in set(self.read)]
        assert not [file for file in unread if self.is_readable(file.who)], "a file with a readable name was left out"
        if self.is_exact:
            assert self.missed == len(unread)


class HeldMachine(ChainMachine):
    """Stalls are long: more generations wait than are held."""

    @initialize()
    def begin(self) -> None:
        super().begin()
        for _ in range(HELD + 5):
            self.rotate(True)
            self.look()


ChainMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
HeldMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestChain = ChainMachine.TestCase
TestHeldChain = HeldMachine.TestCase
