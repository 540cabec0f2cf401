"""Needs of a configuration, and the warnings if the host has less."""

from __future__ import annotations

from dataclasses import replace

from nsbridge.agents.endpoints.queue.config import QueueEndpoint, QueueIn, QueueOut
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.config.schema import (
    AgentConfig,
    Config,
    Container,
    DaemonConfig,
    Delivery,
    RouteConfig,
    User,
)
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.host.limits import HostLimits, read_host, shortages

AMPLE = HostLimits(instances=100_000, watches=1_000_000, descriptors=100_000, pids=1_000_000, tasks=1_000_000)


def config(routes: int, delivery: Delivery = Delivery.EXACTLY_ONCE, uids: int = 0) -> Config:
    """Return so many routes of a spool and a queue, both ways; `uids` users take turns, 0: the owner of the
    directories.
    """

    def route(number: int) -> RouteConfig:
        user = User(1000 + number % uids, 0) if uids else None
        spool = AgentConfig(
            f"r{number}:a", Container(engines.runc.KIND, "a"), SpoolEndpoint(out="/o", in_="/i"), user=user
        )
        queue = AgentConfig(
            f"r{number}:b", Container(engines.runc.KIND, "b"), QueueEndpoint(out=QueueOut(1), in_=QueueIn(2))
        )
        return RouteConfig(f"r{number}", (spool, queue), delivery)

    return Config(DaemonConfig(), tuple(route(number) for number in range(routes)))


def test_a_host_with_ample_limits_is_not_complained_of() -> None:
    assert shortages(config(200), AMPLE) == []


def test_debian_s_limits_are_enough_for_a_few_routes() -> None:
    assert shortages(config(10), HostLimits(128, 65536, 1024, 32768, 4096)) == []


def test_two_hundred_routes_need_more_inotify_instances() -> None:
    """Each side of a spool has one."""
    (line,) = shortages(config(200), replace(AMPLE, instances=128))
    assert line.startswith("fs.inotify.max_user_instances is 128, and agents of the owners of directories may need 464")
    assert "sysctl -w fs.inotify.max_user_instances=464" in line


def test_users_are_counted_each_for_itself() -> None:
    assert shortages(config(200, uids=8), replace(AMPLE, instances=128)) == []
    lines = shortages(config(200, uids=2), replace(AMPLE, instances=128))
    assert [line.split(" may need")[0].rpartition(" of ")[2] for line in lines] == ["uid 1000", "uid 1001"]


def test_watches_are_counted_too() -> None:
    (line,) = shortages(config(200), replace(AMPLE, watches=1000))
    assert "sysctl -w fs.inotify.max_user_watches=1664" in line


def test_the_supervisor_s_descriptors() -> None:
    (line,) = shortages(config(200), replace(AMPLE, descriptors=1024))
    assert line.startswith("RLIMIT_NOFILE is 1024, and the supervisor of 200 routes may need 2320")
    assert "LimitNOFILE=2320" in line


def test_processes_with_senders_and_threads() -> None:
    """A spool and a queue: two agents, the thread that takes, and two senders or a thread that puts."""
    (line,) = shortages(config(200), replace(AMPLE, tasks=900, tasks_where="/sys/fs/cgroup/x/pids.max"))
    assert line.startswith("/sys/fs/cgroup/x/pids.max leaves room for 900, and 200 routes may need 1000 processes")
    assert shortages(config(200, Delivery.AT_LEAST_ONCE), replace(AMPLE, tasks=900)) == []
    (line,) = shortages(config(200), replace(AMPLE, pids=1000))
    assert line.endswith("sysctl -w kernel.pid_max=3024")


def test_this_host_can_be_read() -> None:
    host = read_host()
    assert min(host.instances, host.watches, host.descriptors, host.pids, host.tasks) > 0
