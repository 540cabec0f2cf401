"""Containers come and go under load: how soon their agents are inside again, and whether every message arrives.

    python -m tests.system.comings --restarts 200 [--engine runc|docker|k8s|…]… [--seed N] [--report FILE]

Prints a report in Markdown, and puts it below the text of FILE (docs/comings.md); the exit code is 1 if anything was
lost, repeated, out of order or damaged, or an agent was not back.

For each engine there is one route between a container `a` with a spool on the host's disk and a container `b` with a
queue, whose ipc namespace belongs to a second container (of a pod: to its sandbox), so that the queue outlives it. The
programs at both ends are storm_program.py at full load; they are not in the containers, so they are never stopped. Each
container is restarted in turn, in the ways that its engine has. The first thing that its init does is to touch a file:
the time to the agent's RUNNING is counted from there. `rolling` replaces the pod `a` as a Deployment does.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nsbridge.config.schema import Container
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers.engines.compose import PROJECT, SERVICE
from tests.system.comings_containerd import RAN, RUNNING, of_containerd
from tests.system.comings_system import SYSTEM, maker
from tests.system.containerd_daemon import ContainerdDaemon
from tests.system.engine_daemons import Daemon, DaemonContainer, DockerDaemon, Podman
from tests.system.engines import CrunContainer, EngineContainer, Program, RuncContainer
from tests.system.lxc_containers import LxcContainer
from tests.system.nsbridged import Followed
from tests.system.room import Room, sys_mounted, wait_until
from tests.system.storm import Storm
from tests.system.storm_outcome import EXACTLY_ONCE, Outcome, Plan

PAIR = ("spool", "queue")
RUNTIMES = {"runc": RuncContainer, "crun": CrunContainer, "lxc": LxcContainer}
# The share of each engine in the restarts.
_SHARE = {"runc": 5, "docker": 5, "crun": 1, "podman": 1, "lxc": 1, "containerd": 3, "k8s": 3, "rolling": 3}
_SHARE |= {"compose": 1, "machine": 1, "incus": 1}
ENGINES = tuple(_SHARE)
_MARK = "<!-- what follows is written by `make comings` -->"
_BACK_WITHIN = 30.0  # seconds
_PAUSE = 300  # microseconds between the messages of each direction
_numbers = itertools.count(1)


class WithVolume(DaemonContainer):
    """Container of Docker or Podman, with a directory of the host at /srv."""

    def __init__(self, engine: Daemon, options: Sequence[str] = ()) -> None:
        self._root = engine.base / f"volume-{next(_numbers)}"
        (self._root / "srv").mkdir(parents=True)
        super().__init__(Program(RUNNING, options=(f"--volume={self._root}/srv:/srv", *options)), engine)

    @property
    def rootfs(self) -> Path:
        """Return the part of it that is on the host."""
        return self._root

    def restart(self) -> None:
        """Restart it by the engine's own restart."""
        self.engine.command("restart", "--time=1", self.name)
        self.start()  # which only looks for its new init

    def removed_and_made_again(self) -> None:
        """Remove it and make a new container of the same name."""
        self.engine.command("rm", "--force", self.name)
        self.id = ""
        self.start()


def new_service() -> tuple[str, list[str]]:
    """Return the name of a Compose service of its own, and what its containers are made with."""
    project = f"nsb{os.getpid()}-{next(_numbers)}"
    return f"compose:{project}/web", [f"--label={PROJECT}={project}", f"--label={SERVICE}=web"]


class Service(WithVolume):
    """The container of a service. Compose makes it again under another name, and so does this."""

    def __init__(self, engine: Daemon, options: Sequence[str] = ()) -> None:
        self._spec, labels = new_service()
        super().__init__(engine, [*labels, *options])

    @property
    def container(self) -> Container:
        """Return the service."""
        return Container(engines.compose.KIND, self._spec.partition(":")[2])

    def removed_and_made_again(self) -> None:
        """Remove it, and make it again under another name."""
        self.engine.command("rm", "--force", self.name)
        self.name, self.id = f"{self.name}x", ""
        self.start()


@dataclass
class Comings:
    """Results of the restarts with one engine."""

    engine: str
    outcome: Outcome
    delays: dict[str, list[float]]  # seconds, by agent

    @property
    def all_delays(self) -> list[float]:
        """Return the delays of both agents."""
        return [delay for delays in self.delays.values() for delay in delays]


def run(engine: str, restarts: int, seed: int) -> Comings:
    """Restart the two containers of a route so many times, in turn, with an engine of its own."""
    with ExitStack() as cleanup:
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="nsb-", ignore_cleanup_errors=True)))
        directory.chmod(0o711)
        room = Room(directory)
        cleanup.callback(room.close)
        os.environ["NSBRIDGE_LXC_PATH"] = str(directory / "lxc")
        if engine in RUNTIMES:
            pair = of_runtime(engine, room, directory, cleanup)
        elif engine in ("containerd", "k8s", "rolling"):
            pair = of_containerd(engine, _containerd(room, directory, cleanup), cleanup)
        elif engine in SYSTEM:
            pair = pair_of(maker(engine, room, directory, cleanup), cleanup)
        elif engine == "compose":
            pair = of_daemon(_daemon("docker", room, directory, cleanup), cleanup, Service)
        else:
            pair = of_daemon(_daemon(engine, room, directory, cleanup), cleanup)
        return restart_under_load(engine, directory, pair, Plan(PAIR, EXACTLY_ONCE, restarts, seed=seed, pause=_PAUSE))


def restart_under_load(engine: str, directory: Path, pair: Sequence[EngineContainer], plan: Plan) -> Comings:
    """Run a storm whose strikes are restarts."""
    storm = Storm(plan, directory, pair)
    delays: dict[str, list[float]] = {"a": [], "b": []}
    outcome = storm.run(lambda: _restart_all(storm, pair, delays))
    return Comings(engine, outcome, delays)


def _restart_all(storm: Storm, pair: Sequence[EngineContainer], delays: dict[str, list[float]]) -> None:
    chance = random.Random(storm.plan.seed)
    storm.daemon.wait_for("RUNNING")
    followed = Followed(storm.daemon)
    for number in range(storm.plan.strikes):
        storm.wait_for_arrivals()
        name, container = "ab"[number % 2], pair[number % 2]
        before = _ran(container)
        chance.choice(_ways(container))()
        followed.until(f"r:{name}", "WAITING", _BACK_WITHIN)
        back = followed.until(f"r:{name}", "RUNNING", _BACK_WITHIN)
        delays[name].append(max(0.0, back.timestamp() - _ran_again(container, before)))


def _ran(container: EngineContainer) -> float:
    """Return when its init began, by the wall clock."""
    return (container.rootfs / RAN).stat().st_mtime


def _ran_again(container: EngineContainer, before: float) -> float:
    """Wait until it ran again: an agent may be inside before init has done anything."""
    wait_until(lambda: _ran(container) != before, f"init of {container.name} runs")
    return _ran(container)


def _ways(container: EngineContainer) -> list[Callable[[], None]]:
    """Return the ways to restart it."""

    def killed() -> None:
        container.kill()
        container.start()

    def stopped() -> None:
        container.stop()
        container.start()

    if isinstance(container, WithVolume):
        return [killed, stopped, container.restart, container.removed_and_made_again]
    return [killed, stopped]


def of_runtime(engine: str, room: Room, directory: Path, cleanup: ExitStack) -> list[EngineContainer]:
    """Return two running containers of runc, crun or LXC."""
    return pair_of(lambda program: RUNTIMES[engine](program, room, directory), cleanup)


def pair_of(make: Callable[[Program], EngineContainer], cleanup: ExitStack) -> list[EngineContainer]:
    """Return two running containers: `a`, and `b` whose queue outlives it."""

    def started(program: Program) -> EngineContainer:
        container = make(program)
        cleanup.callback(container.delete)
        container.start()
        return container

    keeper = started(Program())
    return [started(Program(RUNNING)), started(Program(RUNNING, ipc=f"/proc/{keeper.pid}/ns/ipc"))]


def of_daemon(
    daemon: Daemon, cleanup: ExitStack, make: Callable[[Daemon, Sequence[str]], WithVolume] = WithVolume
) -> list[EngineContainer]:
    """Return the same of Docker or Podman."""
    keeper = DaemonContainer(Program(options=["--ipc=shareable"]), daemon)
    made = [keeper, make(daemon, ()), make(daemon, [f"--ipc=container:{keeper.name}"])]
    for container in made:
        cleanup.callback(container.delete)
        container.start()
    return [*made[1:]]


def _containerd(room: Room, directory: Path, cleanup: ExitStack) -> ContainerdDaemon:
    base = directory / "containerd"
    base.mkdir()
    daemon = ContainerdDaemon(room, base)
    cleanup.callback(daemon.close)
    daemon.start()
    daemon.import_image()
    os.environ.update(daemon.env)  # for the nsbridged that is started later
    return daemon


def _daemon(engine: str, room: Room, directory: Path, cleanup: ExitStack) -> Daemon:
    base = directory / engine
    base.mkdir()
    daemon = DockerDaemon(room, base) if engine == "docker" else Podman(room, base)
    cleanup.enter_context(sys_mounted())
    cleanup.callback(daemon.close)
    if isinstance(daemon, DockerDaemon):
        daemon.start()
    daemon.import_image()
    os.environ.update(daemon.env)  # for the nsbridged that is started later
    return daemon


def shares(restarts: int, engines: Sequence[str]) -> dict[str, int]:
    """Return how many restarts each engine gets: most for those that are used most."""
    whole = sum(_SHARE[engine] for engine in engines)
    return {engine: -(-restarts * _SHARE[engine] // whole) for engine in engines}


def report(all_came: Sequence[Comings], seed: int) -> str:
    """Return the report in Markdown."""
    directions = [direction for came in all_came for direction in came.outcome.directions]
    delays = [delay for came in all_came for delay in came.all_delays]
    summary = (
        f"**{len(delays)} restarts**, **{sum(d.sent for d in directions):,} messages**: "
        f"{sum(d.lost for d in directions)} lost, {sum(d.audit['repeated'] for d in directions)} repeated, "
        f"{sum(d.audit['out_of_order'] for d in directions)} out of order. Attached again "
        f"{_ms(statistics.median(delays))} after the container's init ran (median), {_ms(max(delays))} at most."
    )
    machine = (
        f"Linux {os.uname().release}, Python {sys.version.split()[0]}, {os.cpu_count()} cores, load average "
        f"{os.getloadavg()[1]:.0f}, seed {seed}, {sum(came.outcome.seconds for came in all_came):.0f} s."
    )
    table = [
        "| engine | agent | restarts | median | 9 of 10 | most | messages | lost | repeated | out of order |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |",
        *[row for came in all_came for row in _rows(came)],
    ]
    problems = [f"* BROKEN: {problem}" for came in all_came for problem in came.outcome.problems()]
    return "\n".join([summary, "", machine, "", *table, "", *problems]).rstrip()


def _rows(came: Comings) -> Iterator[str]:
    for (name, delays), direction in zip(came.delays.items(), came.outcome.directions, strict=True):
        times = [statistics.median(delays), statistics.quantiles(delays, n=10, method="inclusive")[-1], max(delays)]
        audit = direction.audit
        cells = [
            came.engine,
            f"{name} ({direction.name})",
            len(delays),
            *map(_ms, times),
            f"{direction.sent:,}",
            direction.lost,
            audit["repeated"],
            audit["out_of_order"],
        ]
        yield f"| {' | '.join(map(str, cells))} |"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Restart containers under load, and count time and messages.")
    parser.add_argument("--restarts", type=int, default=200, help="in all")
    parser.add_argument("--each", type=int, help="restarts with each engine, in place of shares of --restarts")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="which, all if it is not given")
    parser.add_argument("--report", type=Path, help="a Markdown file whose part after the mark is replaced")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    all_came = []
    chosen = options.engine or ENGINES
    counts = shares(options.restarts, chosen)
    if options.each:
        counts = {engine: int(options.each) for engine in chosen}
    for engine, restarts in counts.items():
        all_came.append(run(engine, restarts, options.seed))
        print(f"{engine}: {all_came[-1].outcome.problems() or 'kept'}", file=sys.stderr)
    text = report(all_came, options.seed)
    print(text)
    if options.report:
        before = options.report.read_text(encoding="utf-8").partition(_MARK)[0]
        options.report.write_text(f"{before}{_MARK}\n\n{text}\n", encoding="utf-8")
    return any(came.outcome.problems() for came in all_came)


if __name__ == "__main__":
    sys.exit(main())
