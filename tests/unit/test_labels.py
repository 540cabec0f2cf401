"""Names by labels (`compose:`, `docker-label:`): which containers match, and labels that are hostile."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from nsbridge.config.schema import Container
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers import locate as containers
from nsbridge.supervisor.containers.dockerapi import parse_labelled
from nsbridge.supervisor.containers.engines.compose import NUMBER, ONE_OFF, PROJECT, SERVICE
from nsbridge.supervisor.containers.identity import Ambiguous, ContainerRefused, NotRunning
from tests.unit.http_fake import FakeEngine, Reply

WEB = {PROJECT: "shop", SERVICE: "web"}
IMAGE = "sha256:00ff"


class Docker(FakeEngine):
    """A fake dockerd with containers that the test adds."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, {})
        self.image(IMAGE, {})
        self.listed: list[dict[str, object]] = []
        self.on_listing: Callable[[], object] = lambda: None

    def image(self, image: str, labels: Mapping[str, str] | None) -> None:
        self.replies[f"/images/{image}/json"] = json.dumps({"Config": {"Labels": labels}}).encode()

    def add(self, name: str, labels: Mapping[str, object] | None, status: str = "running", image: str = IMAGE) -> None:
        number = f"{len(self.listed):064x}"
        self.listed.append(
            {"Id": number, "Names": [f"/{name}"], "State": status, "ImageID": image, "Labels": labels, "Pad": ""}
        )
        state = {"Status": status, "Pid": os.getpid() if status == "running" else 0, "StartedAt": "x"}
        about = {"Id": number, "Name": f"/{name}", "State": state}
        self.replies[f"/containers/{number}/json"] = json.dumps(about).encode()
        self.replies["*"] = json.dumps(self.listed).encode()

    def reply_to(self, target: str) -> Reply | None:
        """Answer a list whatever its filter is: what does not match is for nsbridge to leave out."""
        if not target.startswith("/containers/json?"):
            return self.replies.get(target)
        self.on_listing()
        return self.replies.get("*")


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Docker]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    monkeypatch.setenv("PATH", str(tmp_path))  # no podman command
    monkeypatch.setattr(engines.podman, "SOCKET", str(tmp_path / "podman.sock"))
    monkeypatch.delenv("CONTAINER_HOST", raising=False)
    made = Docker(Path("docker.sock"))
    yield made
    made.close()


def compose(name: str = "shop/web") -> Container:
    return Container(engines.compose.KIND, name)


def label(name: str) -> Container:
    return Container(engines.docker_label.KIND, name)


def refused(container: Container, kind: type[Exception] = NotRunning) -> str:
    with pytest.raises(kind) as caught:
        containers.locate(container)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_service_is_found_by_project_and_service(docker: Docker) -> None:
    docker.add("shop-web-1", WEB)
    docker.add("shop-db-1", WEB | {SERVICE: "db"})
    found = containers.locate(compose())
    assert (found.pid, found.serves) == (os.getpid(), "docker:shop-web-1")
    assert {"label": [f"{PROJECT}=shop", f"{SERVICE}=web"]} in [
        json.loads(target.partition("filters=")[2]) for target in docker.asked if "filters=" in target
    ]


def test_docker_and_podman_are_asked_at_the_same_time(docker: Docker) -> None:
    """Each answers only once the other has been asked, too."""
    podman = Docker(Path("podman.sock"))
    docker.on_listing = podman.on_listing = threading.Barrier(2, timeout=10).wait
    try:
        podman.add("shop-web-1", WEB)
        docker.add("shop-db-1", WEB | {SERVICE: "db"})
        assert containers.locate(compose()).serves == "podman:shop-web-1"
    finally:
        podman.close()


def test_several_running_containers_are_named_and_counted(docker: Docker) -> None:
    for number in range(7):
        docker.add(f"shop-web-{number}", WEB)
    docker.add("shop-web-9", WEB, "exited")
    said = refused(compose(), Ambiguous)
    assert said.startswith("7 running containers match compose:shop/web (docker:shop-web-0, docker:shop-web-1, ")
    assert said.endswith("…): exactly one must")


def test_container_that_does_not_run_is_waited_for(docker: Docker) -> None:
    docker.add("other", {})
    assert refused(compose()) == "no running container matches compose:shop/web"
    docker.add("shop-web-1", WEB, "exited")
    assert refused(compose()) == "no running container matches compose:shop/web (docker:shop-web-1 does not run)"


def test_container_of_compose_run_is_not_the_service(docker: Docker) -> None:
    docker.add("shop-web-run-1", WEB | {ONE_OFF: "True"})
    assert "no container matches compose:shop/web" in refused(compose())
    docker.add("shop-web-1", WEB | {ONE_OFF: "False"})
    assert containers.locate(compose()).serves == "docker:shop-web-1"


def test_label_of_an_image_makes_no_container_a_match(docker: Docker) -> None:
    """An image's author must not choose what its container receives."""
    docker.image("sha256:bad", WEB | {"role": "frontend"})
    docker.add("evil", WEB | {"role": "frontend"}, image="sha256:bad")
    for container in (compose(), label("role=frontend")):
        assert "docker:evil has these labels from its image only" in refused(container)
    docker.add("shop-web-1", WEB | {"role": "frontend"})
    for container in (compose(), label("role=frontend")):
        assert containers.locate(container).serves == "docker:shop-web-1", "nor does it make a name ambiguous"


def test_image_that_compose_has_built_is_the_service_s(docker: Docker) -> None:
    """Compose labels it with project and service; the container's number is in no image of Compose's."""
    docker.image("sha256:built", WEB)
    docker.add("shop-web-1", WEB | {NUMBER: "1"}, image="sha256:built")
    docker.add("by-docker-run", WEB, image="sha256:built")
    docker.image("sha256:forged", WEB | {NUMBER: "1"})
    docker.add("forged", WEB | {NUMBER: "1"}, image="sha256:forged")
    assert containers.locate(compose()).serves == "docker:shop-web-1"


def test_container_without_image_or_labels_is_understood(docker: Docker) -> None:
    """Podman's `--rootfs` has no image."""
    docker.add("bare", None, image="")
    docker.add("web", {"role": "frontend"}, image="")
    docker.add("gone", {"role": "other"}, image="sha256:gone")
    assert containers.locate(label("role=frontend")).serves == "docker:web"
    assert containers.locate(label("role=other")).serves == "docker:gone"


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("a=b", {"a": "b"}),
        ("a=b=c", {"a": "b=c"}),
        ("a=", {"a": ""}),
        ("traefik.http/rule=Host(`x y`) && é", {"traefik.http/rule": "Host(`x y`) && é"}),
        ("a=*", {"a": "*"}),
    ],
)
def test_value_of_a_label_is_taken_literally(docker: Docker, name: str, labels: Mapping[str, str]) -> None:
    docker.add("other", {"a": "bb"})
    docker.add("web", labels)
    assert containers.locate(label(name)).serves == "docker:web"


@pytest.mark.parametrize("name", ["", "a", "=b", "a b=c", "a=\x1b[2J", "a=b\nc", "k" * 200 + "=v", "a=" + "v" * 600])
def test_name_that_is_no_label_is_refused(name: str) -> None:
    refused(label(name), ContainerRefused)


@pytest.mark.parametrize("name", ["web", "Shop/web", "shop/web/1", "shop/", "-shop/web", "shop/we b"])
def test_name_that_is_no_service_is_refused(name: str) -> None:
    refused(compose(name), ContainerRefused)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\xff\xfe\x00",
        b"{}",
        b"[7]",
        b'[{"Id":"x"}]',
        b"[" * 100_000,
        b'[{"Id":1,"Names":["/a"],"State":"running","ImageID":"x","Labels":{}}]',
        b'[{"Id":"a","Names":[],"State":"running","ImageID":"x","Labels":{}}]',
        b'[{"Id":"a","Names":["/a"],"State":"running","ImageID":"x","Labels":{"a":7}}]',
    ],
)
def test_list_that_is_none_is_waited_out_in_one_line(docker: Docker, reply: bytes) -> None:
    docker.replies["*"] = reply
    assert "what answers there is not a docker engine" in refused(compose())


def test_huge_labels_are_one_line_and_pass_when_they_are_gone(docker: Docker) -> None:
    """They are foreign: an agent that needs an operator for them could be stopped by any container."""
    docker.add("huge", WEB | {"x": "y" * (9 << 20)})
    assert "an answer is longer than" in refused(compose())
    docker.listed.clear()
    docker.add("shop-web-1", WEB)
    assert containers.locate(compose()).serves == "docker:shop-web-1"


def test_hostile_names_and_labels_reach_no_terminal(docker: Docker) -> None:
    for number in range(3):
        docker.add(f"\x1b[2J{number}" + "x" * 5000, WEB | {"\x1b]0;": "\x07", "k": "\u2028"})
    refused(compose(), Ambiguous)
    assert all(row.name.isprintable() for row in engines.engine_of(engines.docker_label.KIND).listed())


def test_listing_has_each_name_that_reaches_a_container(docker: Docker) -> None:
    docker.image("sha256:tagged", {"from": "image"})
    docker.add("shop-web-1", WEB | {"role": "frontend", "from": "image", "io.podman.x": "y"}, image="sha256:tagged")
    docker.add("shop-db-1", WEB | {SERVICE: "db"}, "exited")
    assert [(row.name, row.pid) for row in engines.engine_of(engines.compose.KIND).listed()] == [
        ("compose:shop/web", os.getpid())
    ]
    assert [row.name for row in engines.engine_of(engines.docker_label.KIND).listed()] == ["docker-label:role=frontend"]
    docker.add("shop-web-2", WEB | {"role": "frontend"})
    for kind, name in ((engines.compose.KIND, "shop/web"), (engines.docker_label.KIND, "role=frontend")):
        (row,) = engines.engine_of(kind).listed()
        assert (row.name, row.pid, row.state, row.note) == (
            f"{kind}:{name}", 0, "ambiguous", "2 running containers match",
        )  # fmt: skip


def test_silent_engine_hides_no_container_of_the_other(
    docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{tmp_path}/nothing.sock")
    assert "nothing.sock" in refused(compose())
    docker.add("shop-web-1", WEB)
    assert containers.locate(compose()).serves == "docker:shop-web-1"


def test_host_without_either_engine_cannot_have_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("DOCKER_HOST", "CONTAINER_HOST"):
        monkeypatch.delenv(variable, raising=False)
    compose_engine = engines.engine_of(engines.compose.KIND)
    monkeypatch.setattr(engines.docker, "_socket", lambda: str(tmp_path / "none"))
    monkeypatch.setattr(engines.podman, "SOCKET", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not compose_engine.is_installed()
    assert list(compose_engine.listed()) == []


def test_what_podman_prints_is_understood() -> None:
    """Podman 4.3.1, `podman ps --format json`."""
    printed = (
        b'[{"AutoRemove":false,"Command":["sh"],"CreatedAt":"","Exited":false,"Id":"3f0c","Image":"localhost/nsb:1",'
        b'"ImageID":"59a1","Labels":{"role":"frontend"},"Names":["web"],"Pid":4711,"State":"running","Status":""},'
        b'{"Id":"3f0d","ImageID":"","Labels":null,"Names":["db"],"State":"exited"}]'
    )
    web, db = parse_labelled(printed)
    assert (web.id, web.name, web.status, web.image) == ("3f0c", "web", "running", "59a1")
    assert web.labels == {"role": "frontend"}
    assert (db.name, db.labels) == ("db", {})
