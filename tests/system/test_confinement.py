"""Facts from the kernel about every agent and sender of a running daemon, and the daemon's report of them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from nsbridge.agents import linux
from tests.system.conftest import Factory
from tests.system.faults import TO_LEGACY, TO_WEB
from tests.system.nsbridged import EVIDENCE, Nsbridged
from tests.system.room import wait_until
from tests.system.test_relay import route
from tests.system.traffic import Receiver, Sent, put_into_spool, send_all, wait_for_files

ENDPOINTS = {
    "spool": 'spool = { out = "/srv/a/out", in = "/srv/a/in", done = "/srv/a/done" }',
    "log": 'log = { out = "/srv/a/out.log", in = "/srv/a/in.log" }',
    "file": 'file = { out = "/srv/a/one", in = "/srv/a/other" }',
}
QUEUE = "queue = { in = { key = 0x51 }, out = { key = 0x52 }, create = true }"
USER = (1234, 2345)


def routes(files: str, legacy: str) -> str:
    """Return a route for each kind of endpoint in `files`, all into queues of `legacy`; one of these at-least-once."""
    text = ""
    for number, (kind, endpoint) in enumerate(ENDPOINTS.items()):
        queue = QUEUE.replace("0x5", f"0x{5 + number}")
        text += f'[route.{kind}]\ndelivery = "{"at-least" if kind == "file" else "exactly"}-once"\n'
        text += f'[route.{kind}.agent.files]\ncontainer = "{files}"\n{endpoint}\n'
        text += f'[route.{kind}.agent.queue]\ncontainer = "{legacy}"\nuser = "{USER[0]}:{USER[1]}"\n{queue}\n'
    return text


def status_of(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return {key: value.split() for key, value in (line.split(":", 1) for line in lines)}


def assert_powerless(pid: int, user: tuple[int, int], filters: int) -> None:
    """Check what the kernel shows of the process; `filters` of system calls are in force."""
    wait_until(lambda: status_of(pid)["Seccomp_filters"] == [str(filters)], f"pid {pid} has {filters} filters")
    status = status_of(pid)
    assert {kind: int(status[f"Cap{kind}"][0], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == dict.fromkeys(
        ("Inh", "Prm", "Eff", "Bnd", "Amb"), 0
    )
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    assert (status["Uid"], status["Gid"]) == ([str(user[0])] * 4, [str(user[1])] * 4)
    assert status["Groups"] == []
    for task in Path(f"/proc/{pid}/task").iterdir():
        assert status_of(int(task.name))["Seccomp"] == ["2"], "every thread"
    assert os.stat(f"/proc/{pid}/fd").st_uid == 0, "not dumpable: /proc/PID belongs to root"


def descriptors(pid: int) -> list[str]:
    """Return the kinds of its descriptors, without numbers."""
    links = sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda path: int(path.name))
    return [re.sub(r"\d+", "N", os.readlink(link)) for link in links]


SENDERS = os.environ.get(EVIDENCE) == "senders"  # all tests run without the counter (make senders)


@pytest.mark.parametrize("is_counted", [True, pytest.param(False, marks=pytest.mark.senders)])
def test_every_agent_and_sender_is_powerless_and_the_owner(
    tmp_path: Path, runc_container: Factory, is_counted: bool
) -> None:
    """Each kind of endpoint; threads and senders too."""
    files, legacy = runc_container(), runc_container()
    (files.rootfs / "srv/a").mkdir()
    os.chown(files.rootfs / "srv/a", 1000, 2000)
    with Nsbridged(tmp_path, routes(files.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        agents = daemon.agents()
        for name, agent in agents.items():
            assert agent["confinement"] == {
                "seccomp": True,
                "landlock": linux.landlock_abi(),
                "no_new_privs": True,
            }
            has_senders = (not is_counted or SENDERS) and name in ("spool:queue", "log:queue")
            assert len(agent["senders"]) == (2 if has_senders else 0)
            for pid in (agent["pid"], *agent["senders"]):
                # An agent with senders, and each of these, is held to less once they are forked.
                filters = 2 if agent["senders"] else 1
                assert_powerless(pid, USER if name.endswith(":queue") else (1000, 2000), filters)


@pytest.mark.parametrize("kind", [*ENDPOINTS, pytest.param("spool", marks=pytest.mark.senders, id="spool, senders")])
def test_an_agent_has_only_the_descriptors_that_it_was_given(
    tmp_path: Path, runc_container: Factory, kind: str
) -> None:
    """It has also opened some in its container: nothing of the host but its own journals and dead letters."""
    files, legacy = runc_container(), runc_container()
    (files.rootfs / "srv/a").mkdir()
    with Nsbridged(tmp_path, routes(files.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        agents = daemon.agents()
        for side in ("files", "queue"):
            agent = agents[f"{kind}:{side}"]
            given = {
                "/dev/null",
                "socket:[N]",
                "anon_inode:[pidfd]",
                "anon_inode:[eventpoll]",
                "anon_inode:[eventfd]",
                "anon_inode:inotify",
            }
            state = re.sub(r"\d+", "N", f"{tmp_path}/state")
            for pid in (agent["pid"], *agent["senders"]):
                foreign = [
                    target
                    for target in descriptors(pid)
                    if target not in given and not target.startswith((f"{state}/journal/{kind}/", "/srv/a"))
                ]
                assert set(foreign) <= {"/"}, (pid, descriptors(pid))
                assert_no_way_out(pid, agent, Path(f"{tmp_path}/state/dead/{kind}"))
                assert descriptors(pid).count("socket:[N]") <= 2


def assert_no_way_out(pid: int, agent: dict[str, Any], dead: Path) -> None:
    """Assert that each of its directories is its container's, or has no way out by `..`: /proc/PID/fd, dead letters."""
    root, name = Path(f"/proc/{agent['container_pid']}/root"), agent["name"].split(":")[1]
    # Its own /proc/PID/fd has the number of no other: that of a process is made anew for each look.
    own = [(dead / name).stat(), (dead / ".retry" / name).stat(), Path(f"/proc/{pid}/fd").stat()]
    theirs = [root.stat(), *(path.stat() for path in (root / "srv").rglob("*"))]
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if link.is_dir():
            above = Path(f"{link}/..").stat()
            held = link.stat()
            if any(os.path.samestat(held, known) for known in own):
                assert os.path.samestat(above, held), os.readlink(link)
            else:
                assert any(os.path.samestat(held, known) for known in theirs), os.readlink(link)


def test_a_required_confinement_that_is_there_changes_nothing(tmp_path: Path, runc_container: Factory) -> None:
    """Seccomp is everywhere where these tests run: the agents run under it, relay, and nobody complains."""
    files, legacy = runc_container(), runc_container()
    daemon = Nsbridged(tmp_path, route(files.spec, legacy.spec))
    text = daemon.config.read_text(encoding="utf-8")
    daemon.config.write_text(text.replace("[daemon]\n", '[daemon]\nrequire = ["seccomp"]\n'), encoding="utf-8")
    with daemon:
        daemon.wait_for("RUNNING")
        agents = daemon.agents()
        for pid in (pid for agent in agents.values() for pid in (agent["pid"], *agent["senders"])):
            assert status_of(pid)["Seccomp"] == ["2"]
        put_into_spool(files.rootfs / "srv/out", [b"there"])
        with Receiver(legacy, TO_LEGACY, 1) as receiver:
            assert receiver.messages() == [Sent(7, b"there")]
        send_all(legacy, TO_WEB, [Sent(1, b"back")])
        assert [file.read_bytes() for file in wait_for_files(files.rootfs / "srv/in", 1)] == [b"back"]
        assert [agent["restarts"] for agent in daemon.agents().values()] == [0, 0]
        assert "seccomp" not in daemon.said()


def shown(daemon: Nsbridged, name: str) -> dict[str, Any]:
    """Return the output of inspect."""
    (agent,) = daemon.call("inspect", name=name)
    return dict(agent)


def test_inspect_shows_the_filter(tmp_path: Path, runc_container: Factory) -> None:
    """This holds for agents and senders."""
    files, legacy = runc_container(), runc_container()
    with Nsbridged(tmp_path, route(files.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        for name in ("r:files", "r:queue"):
            facts = shown(daemon, name)
            for process in (facts, *facts["senders"]):
                assert (process["seccomp"], process["no_new_privs"]) == ("filter", True)
                assert not any(process["capabilities"].values())
