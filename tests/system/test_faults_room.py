"""No room and no descriptors: what that costs is time, and status says which of them is missing and where."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import inotify_simple
import psutil
import pytest

from tests import child
from tests.system.conftest import Factory
from tests.system.faults import TO_LEGACY, TO_WEB, bodies, configured, says, says_nothing
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import run, wait_until
from tests.system.test_relay import route
from tests.system.traffic import Receiver, Sent, put_into_spool, send_all, visible, wait_for_files

UID = 54321


def fill(directory: Path) -> Path:
    """Leave no room on its file system; the file that holds it all."""
    filler = directory / ".filler"
    with filler.open("wb", buffering=0) as file:
        while _has_room(file):
            pass
    return filler


def _has_room(file: Any) -> bool:
    try:
        file.write(bytes(4096))
    except OSError:
        return False
    return True


def test_a_full_disk_under_a_spool_holds_messages_back(tmp_path: Path, unshare_container: Factory) -> None:
    """Its reader makes room file by file; every message comes once, whole, in order."""
    web, legacy = unshare_container(), unshare_container()
    inside = web.rootfs / "srv/in"
    inside.mkdir()
    web.exec(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/srv/in"])
    messages = bodies(300, 5000)
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        sender = threading.Thread(target=send_all, args=(legacy, TO_WEB, [Sent(1, body) for body in messages]))
        sender.start()
        says(daemon, "r:files", "/srv/in: No space left on device")
        came: list[bytes] = []
        while len(came) < len(messages):
            wait_until(lambda: visible(inside), f"more than {len(came)} files")
            for name in sorted(visible(inside)):
                came.append((inside / name).read_bytes())
                (inside / name).unlink()
        sender.join()
        assert came == messages
        says_nothing(daemon, "r:files")
        daemon.wait_delivered("r:queue", len(messages))
        assert os.listdir(inside) == [], "nothing half-written is left behind"


@contextmanager
def small_state_dir(directory: Path, size: str) -> Iterator[Path]:
    """Give the daemon's state directory a file system of its own."""
    state = directory / "state"
    state.mkdir(mode=0o700)
    run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(state)])
    try:
        yield state
    finally:
        run(["umount", "--lazy", str(state)])


def test_a_full_state_directory_leaves_messages_in_place(tmp_path: Path, unshare_container: Factory) -> None:
    """Also an agent that is killed meanwhile, and comes back to no room at all, loses nothing."""
    web, legacy = unshare_container(), unshare_container()
    messages = [Sent(1, body) for body in bodies(200, 8000)]
    inside = web.rootfs / "srv/in"
    with small_state_dir(tmp_path, "1m") as state, Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        os.kill(daemon.agents()["r:files"]["pid"], signal.SIGSTOP)  # what is taken stays in the journal
        filler = fill(state)
        sender = threading.Thread(target=send_all, args=(legacy, TO_WEB, messages))
        sender.start()
        says(daemon, "r:queue", "No space left on device")
        assert f"journal {state}/journal/r/queue.out" in daemon.agents()["r:queue"]["detail"]
        assert sender.is_alive(), "the container's program is held back"
        kill_and_wait(daemon.agents()["r:queue"]["pid"])
        daemon.wait_for("RUNNING")
        says(daemon, "r:queue", "No space left on device")
        filler.unlink()
        os.kill(daemon.agents()["r:files"]["pid"], signal.SIGCONT)
        assert [file.read_bytes() for file in wait_for_files(inside, 200)] == [message.body for message in messages]
        sender.join()
        says_nothing(daemon, "r:queue")


def test_agents_without_room_for_journals_start_when_there_is(tmp_path: Path, unshare_container: Factory) -> None:
    """The first start of all, on a full state directory: status names the file and the reason."""
    web, legacy = unshare_container(), unshare_container()
    routes = configured(route(web.spec, legacy.spec), "autostart = false")
    with small_state_dir(tmp_path, "256k") as state, Nsbridged(tmp_path, routes) as daemon:
        filler = fill(state)
        daemon.call("start", names=["all"])
        wait_until(lambda: "No space left on device" in daemon.agents()["r:queue"]["detail"], "status says why")
        assert f"{state}/journal" in daemon.agents()["r:queue"]["detail"]
        filler.unlink()
        daemon.wait_for("RUNNING")
        send_all(legacy, TO_WEB, [Sent(1, b"at last")])
        assert [file.read_bytes() for file in wait_for_files(web.rootfs / "srv/in", 1)] == [b"at last"]


# No descriptors


def test_an_agent_without_descriptors_resumes_when_it_has_some(tmp_path: Path, unshare_container: Factory) -> None:
    """EMFILE: files stay where they are; messages to be put into files wait."""
    web, legacy = unshare_container(), unshare_container()
    messages = bodies(50, 100)
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        agent = psutil.Process(daemon.agents()["r:files"]["pid"])
        before = agent.rlimit(psutil.RLIMIT_NOFILE)
        agent.rlimit(psutil.RLIMIT_NOFILE, (3, before[1]))
        put_into_spool(web.rootfs / "srv/out", messages)
        says(daemon, "r:files", "Too many open files")
        send_all(legacy, TO_WEB, [Sent(1, body) for body in messages])
        agent.rlimit(psutil.RLIMIT_NOFILE, before)
        with Receiver(legacy, TO_LEGACY, 50) as receiver:
            assert [message.body for message in receiver.messages()] == messages
        assert [file.read_bytes() for file in wait_for_files(web.rootfs / "srv/in", 50)] == messages
        assert daemon.agents()["r:files"]["pid"] == agent.pid
        says_nothing(daemon, "r:files")


@contextmanager
def no_inotify_instances(uid: int) -> Iterator[None]:
    """Let a process of that user have them all."""
    reader, writer = os.pipe()
    inotify_simple.INotify().close()  # its first use looks for libc in a way that another user may not

    def take_all() -> int:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the instances are to be used up before it
        os.setresuid(uid, uid, uid)
        instances = []
        try:
            while True:
                instances.append(inotify_simple.INotify())
        except OSError:
            os.write(writer, b"all")
        signal.pause()
        return 98

    pid = child.fork(take_all)
    os.close(writer)
    try:
        assert os.read(reader, 3) == b"all"
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        child.wait(pid)
        os.close(reader)


@pytest.mark.alone  # other tests' agents run as that user, too
def test_agents_serve_without_inotify_and_return_to_it(tmp_path: Path, unshare_container: Factory) -> None:
    """All agents of one user share the instances, with every other program of that user, in any container.

    The kind: whatever a user's processes share (instances, watches). Every file endpoint looks by itself meanwhile:
    test_watch_polling.py has the others.
    """
    web, legacy = unshare_container(), unshare_container()
    for name in ("out", "in"):
        (web.rootfs / "srv" / name).mkdir()
        os.chown(web.rootfs / "srv" / name, UID, UID)
    messages = bodies(20, 10)
    with (
        ExitStack() as used_up,
        Nsbridged(tmp_path, configured(route(web.spec, legacy.spec), "autostart = false")) as daemon,
    ):
        used_up.enter_context(no_inotify_instances(UID))
        daemon.call("start", names=["all"])
        daemon.wait_for("RUNNING")
        detail = daemon.agents()["r:files"]["detail"]
        assert f"inotify instances of uid {UID} are used up: raise sysctl fs.inotify.max_user_instances" in detail
        assert daemon.agents()["r:files"]["phase"] in ("idle", "relaying")
        put_owned(web.rootfs / "srv/out", messages)
        send_all(legacy, TO_WEB, [Sent(1, body) for body in messages])
        with Receiver(legacy, TO_LEGACY, 40) as receiver:
            wait_until(lambda: daemon.flow("r:files")["delivered"] == 20, "all are delivered")
            assert [file.read_bytes() for file in wait_for_files(web.rootfs / "srv/in", 20)] == messages
            used_up.close()
            wait_until(lambda: not daemon.agents()["r:files"]["detail"], "it returns to inotify")
            put_owned(web.rootfs / "srv/out", messages)
            assert [message.body for message in receiver.messages()] == messages * 2
        assert "meanwhile polls every 1 s" in daemon.said()


def put_owned(directory: Path, messages: list[bytes]) -> None:
    """Put files of that user into a spool."""
    for number, body in enumerate(messages):
        hidden = directory / f".{number}"
        hidden.write_bytes(body)
        os.chown(hidden, UID, UID)
        hidden.rename(directory / f"{number:08d}")


def test_the_daemon_starts_without_a_free_inotify_instance() -> None:
    """It needs none itself: in a user namespace that allows none, the program prints its version."""
    in_namespace = ["unshare", "--user", "--map-root-user", "sh", "-ec"]
    script = 'echo 0 > /proc/sys/user/max_inotify_instances; exec "$@"'
    said = run([*in_namespace, script, "sh", sys.executable, "-m", "nsbridge.supervisor.cli.nsbridged", "--version"])
    assert said.stdout.startswith(b"nsbridged ")
