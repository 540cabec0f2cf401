"""Drop-ins of the configuration: their order, what is refused, and that problems of all files are reported together."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nsbridge.config import dropins
from nsbridge.config.errors import ConfigError
from nsbridge.config.load import load, load_trusted
from nsbridge.supervisor.cli.nsbridgectl import socket_path

FIX = "remove one of the two, or give it another name"
MAIN = '[daemon]\nstate_dir = "/run/other"\n'


def route(name: str, where: str = "") -> str:
    """Return a route between two directories of the host, whose names have the route's unless `where` has another."""
    agents = (("one", "out"), ("two", "in"))
    return f"[route.{name}]\n" + "".join(
        f'[route.{name}.agent.{agent}]\ncontainer = "host"\nspool = {{ {end} = "/srv/{where or name}/{end}" }}\n'
        for agent, end in agents
    )


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes the main file and drop-ins by their names, and returns the main file's path."""

    def write(main: str = MAIN, **files: str) -> str:
        (tmp_path / "nsbridge.toml").write_text(main)
        (tmp_path / "nsbridge.d").mkdir(exist_ok=True)
        for name, text in files.items():
            (tmp_path / "nsbridge.d" / f"{name}.toml").write_text(text)
        return str(tmp_path / "nsbridge.toml")

    return write


def problems(path: str, read: Callable[[str], object] = load) -> list[str]:
    """Return the problems, without the directory."""
    with pytest.raises(ConfigError) as caught:
        read(path)
    return [problem.replace(f"{os.path.dirname(path)}/", "") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("file", "directory"),
    [
        ("/etc/nsbridge/nsbridge.toml", "/etc/nsbridge/nsbridge.d"),
        ("./my.toml", "./my.d"),
        ("conf", "conf.d"),
        ("/dev/stdin", "/dev/stdin.d"),
    ],
)
def test_directory_stands_beside_the_file(file: str, directory: str) -> None:
    assert dropins.directory(file) == directory


def test_routes_follow_those_of_the_file_in_the_order_of_names(write: Write) -> None:
    """The order is that of code points, in any locale."""
    path = write(MAIN + route("m"), b=route("b2") + route("b1"), Z=route("z"), a=route("a"), ä=route("umlaut"))
    config = load(path)
    assert [found.name for found in config.routes] == ["m", "z", "a", "b2", "b1", "umlaut"]
    assert [Path(name).stem for name in config.drop_ins] == ["Z", "a", "b", "ä"]
    assert (config.source, config.daemon.state_dir) == (path, "/run/other")
    assert config.count == "6 routes, 4 drop-ins"


def test_other_files_are_no_drop_ins(write: Write, tmp_path: Path) -> None:
    path = write(a=route("a"))
    for name in ("b.toml~", ".c.toml", "d.toml.dpkg-new", "README", ".e.toml.swp"):
        (tmp_path / "nsbridge.d" / name).write_text("this is no TOML")
    assert [found.name for found in load(path).routes] == ["a"]


def test_without_a_directory_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "nsbridge.toml"
    path.write_text(route("a"))
    assert load(str(path)).drop_ins == ()
    assert load(str(path)).count == "1 route"


def test_route_in_two_files_is_refused_and_both_are_named(write: Write) -> None:
    path = write(route("m"), a=route("m"), b=route("x"), c=route("x"))
    assert problems(path) == [
        f"nsbridge.d/a.toml: route.m: is in nsbridge.toml too; {FIX}",
        f"nsbridge.d/c.toml: route.x: is in nsbridge.d/b.toml too; {FIX}",
    ]


def test_problems_of_all_files_are_reported_together(write: Write) -> None:
    path = write(
        "[daemon]\nstate_dir = 5\n",
        a="not TOML",
        b=route("b").replace("spool", "spol"),
        c='[daemon]\nstate_dir = "/x"\n',
        d="routes = 1\n" + route("d"),
        e=route("e"),
    )
    places = [problem.rpartition("; ")[0].split(": ")[:2] for problem in problems(path)]
    assert places == [
        ["nsbridge.toml", "daemon.state_dir"],
        ["nsbridge.d/a.toml", "line 1, column 5"],
        ["nsbridge.d/b.toml", "route.b.agent.one.spol"],
        ["nsbridge.d/b.toml", "route.b.agent.two.spol"],
        ["nsbridge.d/c.toml", "daemon"],
        ["nsbridge.d/d.toml", "routes"],
    ]


def test_conflict_between_two_files_is_found(write: Write) -> None:
    """Both take from one directory; the later file is named, and the other agent."""
    path = write(MAIN, a=route("a"), b=route("b", where="a"))
    (problem,) = problems(path)
    assert problem.startswith("nsbridge.d/b.toml: route.b.agent.one.spool.out: ")
    assert "a:one" in problem


def test_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nsbridge.toml"
    path.write_text(MAIN)
    (tmp_path / "nsbridge.d").write_text("")
    for read in (load, load_trusted):
        (problem,) = problems(str(path), read)
        assert problem.startswith("nsbridge.d: cannot be read: Not a directory; ")


@pytest.mark.parametrize("name", ["nsbridge.d", "nsbridge.d/a.toml"])
def test_link_that_leads_nowhere_is_refused(write: Write, tmp_path: Path, name: str) -> None:
    path = write()
    if name == "nsbridge.d":
        (tmp_path / name).rmdir()
    (tmp_path / name).symlink_to("/nowhere")
    (problem,) = problems(path)
    assert problem.startswith(f"{name}: cannot be read: No such file or directory; ")


def test_directory_with_the_name_of_a_drop_in_is_refused(write: Write, tmp_path: Path) -> None:
    path = write()
    (tmp_path / "nsbridge.d/a.toml").mkdir()
    for read in (load, load_trusted):
        (problem,) = problems(path, read)
        assert problem.startswith("nsbridge.d/a.toml: cannot be read: ")


@pytest.mark.parametrize("name", ["nsbridge.d", "nsbridge.d/a.toml"])
def test_what_others_may_write_is_not_trusted(write: Write, tmp_path: Path, name: str) -> None:
    """The daemon refuses it, also where it is a directory without any file; --check only reads it."""
    path = write(a=route("a"))
    assert len(load_trusted(path).routes) == 1
    (tmp_path / name).chmod(0o770)
    assert len(load(path).routes) == 1
    refused = problems(path, load_trusted)
    assert refused
    assert f"{name} can be changed by users other than root (group" in refused[0]


def test_name_with_a_control_character_is_escaped(write: Write, tmp_path: Path) -> None:
    path = write()
    (tmp_path / "nsbridge.d/x\x1b[2J.toml").write_text("= x")
    assert problems(path)[0].startswith(r"nsbridge.d/x\x1b[2J.toml: line 1")


def test_200_files_are_read(write: Write) -> None:
    config = load_trusted(write(**{f"r{number:03}": route(f"r{number:03}") for number in range(200)}))
    assert [found.name for found in config.routes] == [f"r{number:03}" for number in range(200)]


def test_more_files_than_any_host_needs_are_refused(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropins, "MOST", 2)
    assert problems(write(a="", b="", c="")) == ["nsbridge.d: has 3 drop-ins, 2 at most; join some of them"]


def test_ctl_needs_no_drop_ins_to_find_the_socket(write: Write) -> None:
    path = write('[daemon]\ncontrol = { path = "/run/other/control.sock" }\n', a="not TOML")
    assert socket_path(None, path) == "/run/other/control.sock"
