"""Endpoints where things are not as they should be: late, replaced, refused, not removable."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.engines import EngineContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import run, wait_until
from tests.system.test_relay import route
from tests.system.traffic import Receiver, Sent, put_into_spool, visible, wait_for_files


@pytest.fixture
def pair(runc_container: Factory) -> tuple[EngineContainer, EngineContainer]:
    """Return a container with files, and one with a queue."""
    return runc_container(), runc_container()


Pair = tuple[EngineContainer, EngineContainer]


def files_route(pair: Pair, endpoint: str) -> str:
    """Return test_relay's route with a different endpoint on the side of the files."""
    return route(pair[0].spec, pair[1].spec).replace('spool = { out = "/srv/out", in = "/srv/in" }', endpoint)


def wait_for_detail(daemon: Nsbridged, agent: str, *parts: str) -> None:
    """Wait until status shows all of this for the agent."""

    def said() -> bool:
        return all(part in daemon.agents()[agent]["detail"] for part in parts)

    wait_until(said, f"{agent} says {parts}")


def test_what_is_no_regular_file_stays_and_blocks_nothing(tmp_path: Path, pair: Pair) -> None:
    """These are a symbolic link, a FIFO and a directory; a name is looked at again when it names a new file."""
    spool = pair[0].rootfs / "srv/out"
    spool.mkdir()
    (spool / "1-link").symlink_to("/etc/passwd")
    os.mkfifo(spool / "2-fifo")
    (spool / "3-directory").mkdir()
    with Nsbridged(tmp_path, route(pair[0].spec, pair[1].spec)) as daemon, Receiver(pair[1], 0x51, 2) as receiver:
        daemon.wait_for("RUNNING")
        put_into_spool(spool, [b"behind them"])
        wait_until(lambda: daemon.flow("r:files")["delivered"] == 1, "the file behind them is delivered")
        (spool / "2-fifo").unlink()
        (spool / ".new").write_bytes(b"a file now")
        (spool / ".new").rename(spool / "2-fifo")
        assert receiver.messages() == [Sent(7, b"behind them"), Sent(7, b"a file now")]
        assert sorted(visible(spool)) == ["1-link", "3-directory"]
        assert "1-link is a symbolic link, not a regular file; left where it is" in daemon.said()


def test_an_overlong_file_replaced_by_a_shorter_one_is_taken(tmp_path: Path, pair: Pair) -> None:
    """Under the same name."""
    endpoint = 'spool = { out = "/srv/out", in = "/srv/in", max_message = 100 }'
    with Nsbridged(tmp_path, files_route(pair, endpoint)) as daemon, Receiver(pair[1], 0x51, 1) as receiver:
        daemon.wait_for("RUNNING")
        spool = pair[0].rootfs / "srv/out"
        (spool / "name").write_bytes(b"x" * 101)
        wait_until(lambda: "more than max_message = 100 bytes; left where it is" in daemon.said(), "it is refused")
        (spool / ".short").write_bytes(b"short")
        (spool / ".short").rename(spool / "name")
        assert receiver.messages() == [Sent(7, b"short")]


def test_delivered_files_go_to_done_which_is_remade_if_removed(tmp_path: Path, pair: Pair) -> None:
    """A name that is there already does not overwrite the older file."""
    endpoint = 'spool = { out = "/srv/out", in = "/srv/in", done = "/srv/done" }'
    spool, done = pair[0].rootfs / "srv/out", pair[0].rootfs / "srv/done"
    with Nsbridged(tmp_path, files_route(pair, endpoint)) as daemon:
        daemon.wait_for("RUNNING")
        for number, body in enumerate((b"one", b"two", b"three"), 1):
            if number == 3:
                for file in done.iterdir():
                    file.unlink()
                done.rmdir()
            (spool / "name").write_bytes(body)
            wait_until(lambda: not visible(spool), f"message {number} is moved away")
            if number == 2:
                assert sorted(file.read_bytes() for file in done.iterdir()) == [b"one", b"two"]
        assert [file.read_bytes() for file in done.iterdir()] == [b"three"]


def test_an_unremovable_file_is_logged_and_delivered_once(tmp_path: Path, pair: Pair) -> None:
    """An immutable directory entry: the spool's directory lets nobody remove anything."""
    spool = pair[0].rootfs / "srv/out"
    spool.mkdir()
    put_into_spool(spool, [b"stays"])
    run(["chattr", "+a", spool])  # append only: files may be made, none removed
    try:
        with Nsbridged(tmp_path, route(pair[0].spec, pair[1].spec)) as daemon, Receiver(pair[1], 0x51, 2) as receiver:
            wait_for_detail(daemon, "r:files", "delivered, but cannot be removed")
            daemon.call("restart", names=["r:files"], wait=True)
            wait_for_detail(daemon, "r:files", "delivered, but cannot be removed")
            run(["chattr", "-a", spool])
            wait_until(lambda: not visible(spool), "it is removed")
            put_into_spool(spool, [b"next"])
            assert receiver.messages() == [Sent(7, b"stays"), Sent(7, b"next")]
    finally:
        run(["chattr", "-a", spool])


def test_spools_are_made_when_their_parent_directory_appears(tmp_path: Path, pair: Pair) -> None:
    """Both of them, without a message having to come."""
    endpoint = 'spool = { out = "/srv/late/out", in = "/srv/late/in" }'
    with Nsbridged(tmp_path, files_route(pair, endpoint)) as daemon:
        daemon.wait_for("RUNNING")
        wait_for_detail(daemon, "r:files", "create /srv/late in runc:", "; nsbridge then makes out and in")
        late = pair[0].rootfs / "srv/late"
        late.mkdir()
        wait_until(lambda: sorted(visible(late)) == ["in", "out"], "both are made")
        wait_until(lambda: daemon.agents()["r:files"]["detail"] == "", "nothing is missing any more")


def test_a_late_directory_s_file_is_a_message_unless_ours(tmp_path: Path, pair: Pair) -> None:
    """Also after its directory was replaced."""
    endpoint = 'file = { out = "/srv/late/f", in = "/srv/late/g" }'
    late = pair[0].rootfs / "srv/late"
    with Nsbridged(tmp_path, files_route(pair, endpoint)) as daemon, Receiver(pair[1], 0x51, 2) as receiver:
        wait_for_detail(daemon, "r:files", "/srv/late")
        (late.parent / ".prepared").mkdir()
        (late.parent / ".prepared/f").write_bytes(b"first")
        (late.parent / ".prepared").rename(late)
        wait_until(lambda: daemon.flow("r:files")["delivered"] == 1, "the first content is delivered")
        late.rename(late.parent / "gone")
        late.mkdir()
        wait_until(lambda: sorted(visible(late)) == ["f", "g"], "the files are made in the new directory")
        daemon.call("restart", names=["r:files"], wait=True)
        (late / "f").write_bytes(b"second")
        assert receiver.messages() == [Sent(7, b"first"), Sent(7, b"second")]
        daemon.wait_delivered("r:files", 2)


def test_an_agent_whose_parent_directory_was_replaced_reenters(tmp_path: Path, pair: Pair) -> None:
    """Landlock leaves it only the old one; the path leads to a new one. Nothing is lost, and it happens only once."""
    endpoint = 'spool = { out = "/srv/a/out", in = "/srv/a/in" }'
    parent = pair[0].rootfs / "srv/a"
    parent.mkdir()
    with Nsbridged(tmp_path, files_route(pair, endpoint)) as daemon, Receiver(pair[1], 0x51, 2) as receiver:
        daemon.wait_for("RUNNING")
        put_into_spool(parent / "out", [b"before"])
        wait_until(lambda: daemon.flow("r:files")["delivered"] == 1, "the first is delivered")
        parent.rename(parent.parent / "old")
        shutil.rmtree(parent.parent / "old")
        parent.mkdir()
        wait_until(lambda: sorted(visible(parent)) == ["in", "out"], "both are made again")
        put_into_spool(parent / "out", [b"after"])
        assert receiver.messages() == [Sent(7, b"before"), Sent(7, b"after")]
        agent = daemon.agents()["r:files"]
        assert agent["restarts"] == (1 if agent["confinement"]["landlock"] else 0)


def test_a_directory_where_a_file_should_be_is_reported(tmp_path: Path, pair: Pair) -> None:
    """Not taken for an idle file."""
    (pair[0].rootfs / "srv/f").mkdir()
    with Nsbridged(tmp_path, files_route(pair, 'file = { out = "/srv/f", in = "/srv/g" }')) as daemon:
        daemon.wait_for("RUNNING")
        wait_for_detail(daemon, "r:files", "/srv/f", "not a regular file")
        wait_until(lambda: "WARNING r:files blocked: /srv/f" in daemon.said(), "the log has it too")


def test_a_burst_of_questions_leaves_room_for_their_answers(tmp_path: Path, pair: Pair) -> None:
    """One queue with two types, as such programs have: a queue full of questions would stop the server for good."""
    web, legacy = pair
    routes = (
        f'[route.echo]\n[route.echo.agent.web]\ncontainer = "{web.spec}"\n'
        'spool = { out = "/srv/out", in = "/srv/in" }\n'
        f'[route.echo.agent.legacy]\ncontainer = "{legacy.spec}"\n'
        "queue = { in = { key = 0x4d2, type = 1 }, out = { key = 0x4d2, type = 2 }, create = true }\n"
    )
    messages = [b"%04d" % number + b"x" * 1200 for number in range(200)]
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", messages)
        wait_for_detail(daemon, "echo:legacy", "is half full, the rest is for its answers")
        with Receiver(legacy, 0x4D2, len(messages), mtype=1, answer_type=2) as server:
            files = wait_for_files(web.rootfs / "srv/in", len(messages))
            assert [file.read_bytes() for file in files] == messages
            assert [message.body for message in server.messages()] == messages


def test_a_queue_limited_by_the_host_waits_and_names_the_sysctl(tmp_path: Path, pair: Pair) -> None:
    """No smaller queue is left behind that the next look would take; when the limit is raised, it is made."""
    web, legacy = pair
    routes = route(web.spec, legacy.spec).replace("create = true", 'create = true, max_bytes = "1MB"')
    with Nsbridged(tmp_path, routes) as daemon:
        wait_for_detail(daemon, "r:queue", "max_bytes = 1000000", "sysctl -w kernel.msgmnb=1000000")
        raised = "echo 1000000 >/proc/sys/kernel/msgmnb"  # the file is of the ipc namespace of who opens it
        run(["nsenter", f"--target={legacy.pid}", "--ipc", "--", "sh", "-c", raised])
        with Receiver(legacy, 0x51, 1) as receiver:
            put_into_spool(web.rootfs / "srv/out", [b"large"])
            assert receiver.messages() == [Sent(7, b"large")]
