"""Finds a container of Docker or Podman by its labels: what engines/compose.py and engines/docker_label.py share.

Some facts about labels, and what they mean here:
* Every label of an image becomes one of each container that is made from it. So who writes an image could give its
  container any label, and be entered in place of the container that is meant. A label that the image has with the same
  value does not count, as nothing shows that the container's maker wanted it.
* Labels do not name one container: any number may have them. One that runs must match, and no other; with several the
  agent waits, because each of them would get half of the messages. An agent that is inside leaves when a second one
  comes (namewatch.py).
* The engines' answers repeat all labels of a container, which may be long and are foreign. What is filtered by the
  engine is compared again: Podman takes some characters of a filter for a pattern.
* Docker and Podman are asked at the same time, by threads of the child that asks: Podman's command takes 75 ms. One
  that does not answer hides no container of the other.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.containers.deadline import TIME_LIMIT
from nsbridge.supervisor.containers.dockerapi import ALIVE, EngineClient, InspectedEngine, Labelled
from nsbridge.supervisor.containers.engine import Engine
from nsbridge.supervisor.containers.identity import (
    Ambiguous,
    ContainerRefused,
    Found,
    NoAnswer,
    NotRunning,
    quoted,
)
from nsbridge.supervisor.containers.rows import Listed, row, row_without_process

_SHOWN = 5  # containers that one message names
_EXAMINED = 32  # running containers whose images are looked at; with more of them the name is not unique anyway
_LISTED_NAMES = 12  # names by labels that one container has in the listing
_ONE_LIMIT = TIME_LIMIT / 2  # seconds for one of the two engines

Match = tuple[InspectedEngine, Labelled]


class LabelledEngine(Engine):
    """Names containers by labels; `sources` are the engines that have the containers."""

    blocks = True
    matches_several = True
    name_checked_every = 5.0

    def __init__(self, sources: Sequence[InspectedEngine]) -> None:
        self._sources = sources

    @abstractmethod
    def labels_of(self, name: str) -> Mapping[str, str]:
        """Return the labels that a container of that name has."""

    @abstractmethod
    def names_of(self, labels: Mapping[str, str]) -> Iterable[str]:
        """Return the names that a container with these labels has."""

    def is_meant(self, wanted: Mapping[str, str], found: Labelled, of_image: Mapping[str, str]) -> bool:
        """True if these labels are the container's own, and not its image's."""
        return all(found.labels.get(key) == value != of_image.get(key) for key, value in wanted.items())

    def locate(self, name: str) -> Found:
        """See Engine."""
        self.check_name(name)
        wanted = self.labels_of(name)
        which = f"{self.kind}:{quoted(name)[1:-1]}"
        known, silent = self._all_matching(wanted)
        alive = [match for match in known if match[1].status in ALIVE]
        own = [match for match in alive[:_EXAMINED] if self._is_own(wanted, *match)]
        if len(own) > 1 or len(alive) > _EXAMINED:
            count = len(own) if len(alive) <= _EXAMINED else len(alive)
            raise Ambiguous(f"{count} running containers match {which} ({_names(own)}): exactly one must")
        if own:
            source, match = own[0]
            found = source.locate(match.id)
            return replace(found, serves=f"{source.kind}:{quoted(found.engine_name)[1:-1]}")
        if silent is not None:
            raise NoAnswer(str(silent))
        if alive:
            raise NotRunning(f"no container matches {which}: {_names(alive)} has these labels from its image only")
        away = f" ({_names(known)} does not run)" if known else ""
        raise NotRunning(f"no running container matches {which}{away}")

    def is_installed(self) -> bool:
        """See Engine."""
        return bool(self._installed())

    def heard_through(self) -> Sequence[Engine]:
        """See Engine."""
        return self._installed()

    def listed(self) -> Iterator[Listed]:
        """See Engine. A name that several running containers have is one row, which says how many."""
        found: list[tuple[str, int, str]] = []
        for source in self._installed():
            with source.client(time.monotonic() + TIME_LIMIT) as client:
                for each in client.labelled({}):
                    names = self._own_names(client, each)
                    about = client.inspect(each.id) if names else None
                    if about is not None and about.pid and about.status in ALIVE:
                        found += [(name, about.pid, about.status) for name in names]
        counts = Counter(name for name, _, _ in found)
        for name, pid, status in sorted(found):
            if counts[name] == 1:
                yield row(f"{self.kind}:{name}", pid, status)
        for name, count in sorted(counts.items()):
            if count > 1:
                yield row_without_process(f"{self.kind}:{name}", "ambiguous", f"{count} running containers match")

    def _installed(self) -> list[InspectedEngine]:
        installed = []
        for source in self._sources:
            with suppress(ContainerRefused):  # a socket of another machine, in the environment
                if source.is_installed():
                    installed.append(source)
        return installed

    def _all_matching(self, wanted: Mapping[str, str]) -> tuple[list[Match], NsbridgeError | None]:
        """Ask all engines at the same time; return the matches, and why one did not answer."""
        sources = self._installed()
        answers: list[list[Match] | NsbridgeError] = [[] for _ in sources]

        def ask(number: int) -> None:
            try:
                answers[number] = self._matching(sources[number], wanted)
            except (NotRunning, ContainerRefused) as error:
                answers[number] = error

        others = [threading.Thread(target=ask, args=(number,)) for number in range(1, len(sources))]
        for other in others:
            other.start()
        if sources:
            ask(0)
        for other in others:
            other.join()
        known = [match for answer in answers if not isinstance(answer, NsbridgeError) for match in answer]
        return known, next((answer for answer in reversed(answers) if isinstance(answer, NsbridgeError)), None)

    def _matching(self, source: InspectedEngine, wanted: Mapping[str, str]) -> list[Match]:
        with source.client(time.monotonic() + _ONE_LIMIT) as client:
            known = client.labelled(wanted)
        return [(source, each) for each in known if all(each.labels.get(key) == wanted[key] for key in wanted)]

    def _is_own(self, wanted: Mapping[str, str], source: InspectedEngine, match: Labelled) -> bool:
        with source.client(time.monotonic() + _ONE_LIMIT) as client:
            return self.is_meant(wanted, match, client.image_labels(match.image))

    def _own_names(self, client: EngineClient, each: Labelled) -> list[str]:
        assert self.kind.pattern is not None  # noqa: S101  (the engines' names have patterns)
        names = sorted(name for name in self.names_of(each.labels) if self.kind.pattern.fullmatch(name))
        if not names or each.status not in ALIVE:
            return []
        of_image = client.image_labels(each.image)
        return [name for name in names if self.is_meant(self.labels_of(name), each, of_image)][:_LISTED_NAMES]


def _names(matches: Sequence[Match]) -> str:
    shown = [f"{source.kind}:{quoted(each.name)[1:-1]}" for source, each in matches[:_SHOWN]]
    return ", ".join([*shown, *(["…"] if len(matches) > _SHOWN else [])])
