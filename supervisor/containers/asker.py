"""Asks an engine where its containers are, for all agents of that engine, in few children.

An engine may not answer, so it is asked in a child. Many agents may want to know at once (the engine came back, with
all their containers): one child answers for up to BATCH of them, one line each as soon as it is known. Who asks because
its container has just been seen to start goes before those who only look from time to time, and does not wait for
their child.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from nsbridge.agents import limits
from nsbridge.agents.loop import Loop, Timer
from nsbridge.config.containerkind import ContainerKind
from nsbridge.config.errors import NsbridgeError
from nsbridge.config.schema import Container
from nsbridge.supervisor.containers.identity import Ambiguous, ContainerRefused, Found, NoAnswer, NotRunning
from nsbridge.supervisor.containers.locate import locate as locate_container
from nsbridge.supervisor.host.spawn import LineChild

ANSWER_LIMIT = 5.0  # seconds for an engine to say the next answer
BATCH = 16  # containers asked for by one child
_CHILDREN = {False: 1, True: 3}  # that may run when one more is made: for a look, for one that was seen to start

Located = Found | NsbridgeError


class Inquiry:
    """A question about one container; `on_answer` is called once, or never after `cancel`."""

    def __init__(self, container: Container, on_answer: Callable[[Located], None]) -> None:
        self.container = container
        self.on_answer: Callable[[Located], None] | None = on_answer

    def cancel(self) -> None:
        """Drop the answer."""
        self.on_answer = None

    def answer(self, answer: Located) -> None:
        """Give the answer: Found, NotRunning or ContainerRefused."""
        on_answer, self.on_answer = self.on_answer, None
        if on_answer is not None:
            on_answer(answer)


class Asker:
    """All questions to one engine."""

    def __init__(
        self, loop: Loop, kind: ContainerKind, locate: Callable[[Container], Found] = locate_container
    ) -> None:
        self._loop = loop
        self._kind = kind
        self._locate = locate
        self._seen: deque[Inquiry] = deque()  # their containers were seen to start
        self._looking: deque[Inquiry] = deque()
        self._batches: set[_AskingChild] = set()

    def ask(self, container: Container, on_answer: Callable[[Located], None], *, seen: bool) -> Inquiry:
        """Ask where a container is; `seen` if its start was reported. The answer never comes within this call."""
        inquiry = Inquiry(container, on_answer)
        (self._seen if seen else self._looking).append(inquiry)
        self._loop.call_later(0, self._resume)
        return inquiry

    def close(self) -> None:
        """End the children."""
        self._seen.clear()
        self._looking.clear()
        for batch in self._batches:
            batch.abandon()
        self._batches.clear()

    def _resume(self) -> None:
        for queue, most in ((self._seen, _CHILDREN[True]), (self._looking, _CHILDREN[False])):
            while queue and len(self._batches) < most:
                taken = [queue.popleft() for _ in range(min(BATCH, len(queue)))]
                wanted = [inquiry for inquiry in taken if inquiry.on_answer is not None]
                if wanted:
                    self._ask(wanted)

    def _ask(self, inquiries: Sequence[Inquiry]) -> None:
        try:
            self._batches.add(_AskingChild(self._loop, self._locate, inquiries, self._ended))
        except OSError as error:
            for inquiry in inquiries:
                inquiry.answer(NotRunning(f"cannot fork to ask {self._kind}: {limits.explained(error)}"))

    def _ended(self, batch: _AskingChild) -> None:
        self._batches.discard(batch)
        self._resume()


class _AskingChild:
    """One child and the questions that it answers."""

    def __init__(
        self,
        loop: Loop,
        locate: Callable[[Container], Found],
        inquiries: Sequence[Inquiry],
        on_end: Callable[[_AskingChild], None],
    ) -> None:
        self._loop = loop
        self._inquiries = dict(enumerate(inquiries))
        self._on_end = on_end
        self._child = LineChild(loop, partial(_answer, locate, [i.container for i in inquiries]), self)
        self._limit = self._await_answer()

    def abandon(self) -> None:
        """Drop the answer."""
        self._limit.cancel()
        self._child.abandon()

    def line_received(self, line: bytes) -> None:
        """See LineListener."""
        try:
            number, answer = parse_answer(line)
        except ValueError:
            self._child.kill()
            return
        self._limit.cancel()
        self._limit = self._await_answer()
        inquiry = self._inquiries.pop(number, None)
        if inquiry is not None:
            inquiry.answer(answer)

    def child_ended(self, code: int) -> None:  # noqa: ARG002  (whatever it is)
        """See LineListener."""
        self._limit.cancel()
        for inquiry in self._inquiries.values():
            inquiry.answer(NotRunning(f"{inquiry.container.kind} did not answer in {ANSWER_LIMIT:g} s"))
        self._on_end(self)

    def _await_answer(self) -> Timer:
        return self._loop.call_later(ANSWER_LIMIT, self._child.kill)


def parse_answer(line: bytes) -> tuple[int, Located]:
    """Return the question's number and the answer from a child's line. Raises ValueError if it is neither."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not an answer") from None
    match said:
        case [int(number), int(pid), int(start_time), str(ns_path)]:
            return number, Found(pid, start_time, ns_path)
        case [int(number), int(pid), int(start_time), str(ns_path), str(engine_id), str(engine_name), str(serves)]:
            return number, Found(pid, start_time, ns_path, engine_id, engine_name, serves)
        case [int(number), "ambiguous", str(text)]:
            return number, Ambiguous(text)
        case [int(number), "absent", str(text)]:
            return number, NotRunning(text)
        case [int(number), "refused", str(text)]:
            return number, ContainerRefused(text)
    raise ValueError("not an answer")


def _answer(locate: Callable[[Container], Found], asked: Sequence[Container], writer: int) -> int:
    """Run the child. Once an engine has not answered, do not ask it again: each question would cost the time limit."""
    silent = ""
    for number, container in enumerate(asked):
        said: list[object]
        try:
            if silent:
                raise NoAnswer(silent)
            found = locate(container)
            said = [number, found.pid, found.start_time, found.ns_path]
            if found.engine_id or found.serves:
                said += [found.engine_id, found.engine_name, found.serves]
        except Ambiguous as error:
            said = [number, "ambiguous", str(error)]
        except NotRunning as error:
            silent = str(error) if isinstance(error, NoAnswer) else ""
            said = [number, "absent", str(error)]
        except NsbridgeError as error:
            said = [number, "refused", str(error)]
        line = json.dumps(said).encode() + b"\n"
        while line:
            line = line[os.write(writer, line) :]
    return 0
