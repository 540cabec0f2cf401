"""The page of `nsbridge web` in a real browser: live, with many routes, on a phone, without script, under attack."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.control_fake import FakeApi, agent, daemon, flow, inspected, status_document
from tests.system.browser import Browser
from tests.system.conftest import Factory
from tests.system.nsbridged import kill_and_wait
from tests.system.test_relay import route
from tests.system.test_web import CONFINED, readable
from tests.system.traffic import put_into_spool
from tests.web_process import Web

pytestmark = pytest.mark.alone  # it measures how soon a page shows what happens

PLANTED = (
    """<img src=x onerror="planted=1"><script>planted=1</script>"'><svg/onload=planted=1>{{7*7}}</td></tr></table>"""
)
ROUTES = 200


class FileApi(FakeApi):
    """A fake whose status is what a file has: the test changes it while the fake runs."""

    path: Path

    @property
    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.path.read_text()))

    @status.setter
    def status(self, _document: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        pass


@contextmanager
def served(path: Path, document: dict[str, Any], records: list[dict[str, str]] | None = None) -> Iterator[Web]:
    """Serve the page of a fake daemon; `write` changes what it says."""
    write(path, document)

    def prepare(api: FakeApi) -> None:
        api.__class__ = FileApi
        api.path = path  # type: ignore[attr-defined]
        api.records = records or []
        api.results["inspect"] = [planted(inspected())] if records else [inspected()]

    with daemon(prepare) as control, Web(control) as web:
        yield web


def write(path: Path, document: dict[str, Any]) -> None:
    whole = path.with_suffix(".new")
    whole.write_text(json.dumps(document))
    whole.rename(path)


def planted(value: Any) -> Any:
    """Return the same with markup in every text."""
    if isinstance(value, dict):
        return {key: planted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [planted(item) for item in value]
    return PLANTED if isinstance(value, str) else value


def many(count: int) -> dict[str, Any]:
    """Return the status of so many routes, of which each tenth is in trouble."""
    states = {0: {"state": "FATAL", "detail": "no directory /srv/out in the container"}}
    states[1] = {"state": "WAITING", "detail": "container not running since 12:03:10"}
    states[2] = {"phase": "blocked", "detail": "blocked: queue 0x4d2 is full"}
    document = status_document()
    document["routes"] = [
        {
            "name": f"r{number}",
            "delivery": "exactly-once",
            "agents": [
                agent(f"r{number}:web"),
                agent(
                    f"r{number}:old",
                    container="runc:old",
                    endpoint="queue",
                    **states.get(number % 30 // 10 + 10 * (number % 10), {}),
                ),
            ],
            "flows": [
                flow(f"r{number}:web", f"r{number}:old", pending=number),
                flow(f"r{number}:old", f"r{number}:web"),
            ],
        }
        for number in range(count)
    ]
    return document


def test_page_of_two_routes_is_live(engine_base: Path, runc_container: Factory) -> None:
    """A kill is seen within a second; then a full queue, a container's end and the daemon's, with their reasons."""
    web_box, legacy = runc_container(), runc_container()
    directory = engine_base / "web-page"
    directory.mkdir()
    other = route(web_box.spec, legacy.spec).replace("route.r", "route.s").replace("/srv/", "/srv/s-")
    other = other.replace("0x51", "0x61").replace("0x52", "0x62")
    made = readable(directory, route(web_box.spec, legacy.spec) + other)
    with made, Web(made.socket, through=CONFINED) as web, Browser() as browser:
        made.wait_for("RUNNING")
        browser.open(web.url)
        browser.wait(lambda: browser.texts("#live") == ["live"], "it is live")
        assert [browser.cell(name, "state") for name in made.agents()] == ["RUNNING"] * 4
        pid = made.agents()["r:queue"]["pid"]
        os.kill(pid, signal.SIGKILL)
        took = browser.wait(lambda: browser.cell("r:queue", "restarts") == "1", "the kill is seen")
        print(f"a kill is seen after {took:.2f} s")
        assert took < 1.0
        browser.wait(lambda: "BACKOFF → STARTING" in "".join(browser.texts("#events li")), "its events are there")
        put_into_spool(web_box.rootfs / "srv/out", [bytes(4000)] * 30)
        browser.wait(lambda: browser.cell("r:queue", "state") == "blocked", "the queue is full")
        assert "full" in browser.cell("r:queue", "why")
        browser.wait(lambda: browser.cell("r:queue", "pending"), "messages wait")
        legacy.stop()
        browser.wait(lambda: browser.cell("s:queue", "state") == "WAITING", "the container has ended")
        assert "container not running since" in browser.cell("s:queue", "why")
        assert browser.complaints() == []
        browser.open(f"{web.url}agent/r:files")
        browser.wait(lambda: browser.texts("#live") == ["live"], "the agent's page is live")
        assert "confined by" in browser.texts("#inspect")[0]
        kill_and_wait(made.agents()["r:files"]["pid"])
        browser.wait(lambda: browser.cell("r:files", "restarts") == "1", "its page shows the kill")
        made.kill()
        browser.wait(lambda: browser.texts("#away") != [], "the page says that the daemon is away")
        assert browser.complaints() == []


def test_page_of_200_routes_stays_usable(tmp_path: Path) -> None:
    document = many(ROUTES)
    with served(tmp_path / "status.json", document) as web, Browser() as browser:
        began = time.monotonic()
        browser.open(web.url)
        browser.wait(lambda: browser.texts("#shown") == [f"{ROUTES} of {ROUTES} routes"], "all are there")
        print(f"200 routes are shown after {time.monotonic() - began:.2f} s")
        assert time.monotonic() - began < 5
        browser.wait(lambda: browser.texts("#live") == ["live"], "it is live")
        browser.click("[name=trouble]")
        shown = int(browser.texts("#shown")[0].split()[0])
        assert 0 < shown < ROUTES / 2
        for state, why in (
            ("FATAL", "no directory"),
            ("WAITING", "not running since"),
            ("blocked", "queue 0x4d2 is full"),
        ):
            assert state in browser.texts("td.state")
            assert any(why in text for text in browser.texts("td.why"))
        browser.click("[name=trouble]")
        browser.type("[name=q]", "r17:")
        assert browser.texts("#shown") == [f"1 of {ROUTES} routes"]
        browser.run(
            "const form = document.getElementById('choice'); form.q.value = ''; form.sort.value = 'pending'; choose()"
        )
        assert browser.texts("td.name")[:2] == ["r199:web", "r199:old"]
        document["routes"][7]["agents"][1] |= {"state": "BACKOFF", "detail": "died: signal 9", "restarts": 3}
        document["routes"].append(many(ROUTES + 1)["routes"][-1])
        del document["routes"][3]
        write(tmp_path / "status.json", document)
        took = browser.wait(lambda: browser.cell("r7:old", "why") == "died: signal 9", "the change is seen")
        assert took < 3
        assert browser.texts("[data-agent='r3:web']") == []
        assert browser.texts("[data-agent='r200:web'] td.name") == ["r200:web"]
        assert browser.texts("[data-count=bad]") != ["0"]
        assert browser.complaints() == []


def test_planted_markup_is_shown_as_text(tmp_path: Path) -> None:
    """In every text of every answer of the daemon; names of routes and agents cannot hold any, and do here too."""
    evil = planted(status_document(agent("x"), agent("y"), flows=(flow("x", "y"), flow("y", "x"))))
    evil["routes"][0]["agents"][1]["name"] = evil["routes"][0]["flows"][0]["to"] = evil["routes"][0]["flows"][1][
        "from"
    ] = "o:y"
    record: dict[str, str] = dict.fromkeys(
        ("time", "name", "event", "from", "to", "detail", "level", "message"), PLANTED
    )
    with served(tmp_path / "status.json", evil, [record, record | {"name": "o:y"}]) as web, Browser() as browser:
        for page in (web.url, f"{web.url}?q={'%3Cimg%20src%3Dx%20onerror%3Dplanted%3D1%3E'}", f"{web.url}agent/o:y"):
            browser.open(page)
            browser.wait(lambda: browser.texts("#live") == ["live"], "it is live")
            browser.wait(lambda: PLANTED in "".join(browser.texts("#log li")), "the log is there")
            assert PLANTED in "".join(browser.texts("#events li"))
            assert browser.run("return [window.planted ?? null, document.querySelectorAll('img').length]") == [None, 0]
            scripts = browser.run("return [...document.scripts].map((script) => script.getAttribute('src'))")
            assert scripts == ["/static/nsbridge.js"]
            assert browser.complaints() == []
        assert PLANTED in browser.texts("#inspect")[0]
        browser.open(web.url)
        evil["routes"][0]["agents"][1] |= {"restarts": 5, "detail": f"new {PLANTED}"}
        write(tmp_path / "status.json", evil)
        browser.wait(lambda: browser.cell("o:y", "restarts") == "5", "the live change is there")
        assert f"new {PLANTED}" in browser.cell("o:y", "why")
        assert browser.run("return [window.planted ?? null, document.querySelectorAll('img').length]") == [None, 0]
        assert browser.complaints() == []


def test_page_works_without_script(tmp_path: Path) -> None:
    """It loads again by itself, and its form chooses."""
    with served(tmp_path / "status.json", many(2)) as web, Browser(script=False) as browser:
        browser.open(f"{web.url}?q=r1:&sort=pending")
        assert "r1:web" in browser.source
        assert "r0:web" not in browser.source
        changed = many(2)
        changed["routes"][1]["agents"][0] |= {"state": "FATAL", "detail": "it has changed"}
        write(tmp_path / "status.json", changed)
        browser.wait(lambda: "it has changed" in browser.source, "the page was loaded again", 15)


def test_page_fits_a_phone_and_the_dark_and_recovers(tmp_path: Path) -> None:
    """Also from the death of nsbridge web itself."""
    long = many(12)
    long["routes"][0]["agents"][0]["container"] = "docker:" + "a-very-long-name-of-a-container-" * 4
    with served(tmp_path / "status.json", long) as web, Browser(390, 844) as browser:
        for dark in (False, True):
            browser.prefer(dark=dark)
            for page in ("agent/r0:web", ""):
                browser.open(web.url + page)
                browser.wait(lambda: browser.texts("#live") == ["live"], "it is live")
                assert browser.run("return document.documentElement.scrollWidth") <= 390
            background = browser.run("return getComputedStyle(document.body).backgroundColor")
            assert (background == "rgb(18, 22, 28)") is dark
            assert browser.complaints() == []
        os.kill(web.pid, signal.SIGKILL)
        browser.wait(lambda: browser.texts("#live") == ["nsbridge web does not answer"], "the page says so")
        with web.again():
            browser.wait(lambda: browser.texts("#live") == ["live"], "it is live again")
