"""`nsbridgectl dead …` without a daemon: what it prints of the answers."""

from __future__ import annotations

import base64
from typing import Any, cast

from nsbridge.supervisor.cli import dead as deadctl
from nsbridge.supervisor.cli.client import ControlClient


class Answering:
    """A Client that has these answers, the last again and again, and notes what it was asked."""

    def __init__(self, *results: dict[str, Any]) -> None:
        self.results = list(results)
        self.asked: list[tuple[str, dict[str, object] | None]] = []

    def call(self, method: str, params: dict[str, object] | None = None) -> Any:
        self.asked.append((method, params))
        return self.results.pop(0) if len(self.results) > 1 else self.results[0]


def letter(seq: int, **facts: object) -> dict[str, object]:
    return {
        "id": f"orders:legacy/00000000000000aa-{seq}",
        "agent": "orders:legacy",
        "epoch": 0xAA,
        "seq": seq,
        "time": "2026-11-23T19:00:00Z",
        "bytes": 8193,
        "type": 1,
        "where": "queue 0x4d2",
        "why": "too long",
    } | facts


def run(result: dict[str, Any], *words: str, as_json: bool = False) -> tuple[list[str], int]:
    return deadctl.run(cast(ControlClient, Answering(result)), words[0], list(words[1:]), as_json=as_json)


def test_the_list_names_each_as_shortly_as_it_can_be_named() -> None:
    other = letter(12, id="orders:legacy/00000000000000bb-12", time=None, type=None, where="", why="\x1b[2J")
    lines, code = run(
        {"letters": [letter(9), letter(12), other], "to_be_retried": {"orders:web": 2}, "more": True}, "list"
    )
    assert code == 0
    assert lines == [
        "ID                                 WHEN                  BYTES  TYPE  WHERE        WHY",
        "orders:legacy/9                    2026-11-23T19:00:00Z  8193   1     queue 0x4d2  too long",
        "orders:legacy/00000000000000aa-12  2026-11-23T19:00:00Z  8193   1     queue 0x4d2  too long",
        "orders:legacy/00000000000000bb-12  -                     8193   -                  \\x1b[2J",
        "when the cause under WHY is fixed: nsbridgectl dead retry ID…, or all; dead drop removes them",
        "2 given back, to be delivered by orders:web when it can",
        "and more: name an agent, or retry or drop some first",
    ]
    assert run({"letters": [], "to_be_retried": {}, "more": False}, "list") == (["no dead letters"], 0)


def test_a_message_is_shown_escaped_and_not_whole() -> None:
    body = base64.b64encode(b"\x1b[2Jh\xc3\xbc\xff").decode()
    lines, _ = run(letter(1, bytes=7) | {"body": body, "cut": False}, "show", "orders:legacy/1")
    assert lines[-2:] == ["", "\\x1b[2Jhü\\xff"]
    long = base64.b64encode(b"x" * 5000).decode()
    lines, _ = run(letter(1) | {"body": long, "cut": True}, "show", "orders:legacy/1")
    assert lines[-1] == f"{'x' * 1024} … and 7,169 more bytes, in the file"


def test_failures_are_listed_and_set_the_exit_code() -> None:
    epochs = [f"orders:legacy/00000000000000{epoch}-{number}" for epoch, number in (("aa", 7), ("aa", 8), ("bb", 9))]
    result = {"done": epochs[:2], "failed": [{"id": "c", "error": "c: it has just gone"}], "waiting": {}, "more": False}
    assert run(result, "retry", "all") == (
        ["c: it has just gone", "2 dead letters given back to be delivered: orders:legacy/7..8"],
        1,
    )
    result |= {"done": [], "failed": [], "waiting": {"orders:web": "STOPPED"}, "more": True}
    assert run(result, "retry", "all") == (
        [
            "0 dead letters given back to be delivered",
            "orders:web is STOPPED: it delivers them when it runs",
            "there are more: do it again",
        ],
        0,
    )
    result |= {"done": epochs, "more": False}
    assert run(result, "drop", "all")[0][0] == (
        "3 dead letters dropped: orders:legacy/00000000000000aa-7..8, orders:legacy/00000000000000bb-9"
    )


def test_command_repeats_while_the_daemon_has_more_letters() -> None:
    """The daemon takes some at a time. All calls name the same moment: what is put aside after it is left alone."""
    ids = [f"orders:legacy/00000000000000aa-{number}" for number in range(5)]
    answer: dict[str, Any] = {"failed": [], "waiting": {}}
    answers = [
        answer | {"done": ids[:2], "more": True},
        answer | {"done": ids[2:4], "more": True, "failed": [{"id": "c", "error": "c: gone"}]},
        answer | {"done": ids[4:], "more": False, "failed": [{"id": "c", "error": "c: gone"}]},
    ]
    client = Answering(*answers)
    lines, code = deadctl.run(cast(ControlClient, client), "retry", ["all"], as_json=False)
    assert lines == ["c: gone", "5 dead letters given back to be delivered: orders:legacy/0..4"]
    assert code == 1
    assert len(client.asked) == 3
    assert len({str(params) for _, params in client.asked}) == 1


def test_json_is_the_answer_itself_with_the_same_exit_code() -> None:
    result = {"done": [], "failed": [{"id": "c", "error": "gone"}], "waiting": {}, "more": False}
    lines, code = run(result, "drop", "c", as_json=True)
    assert (len(lines), code) == (1, 1)
    assert '"error": "gone"' in lines[0]


def test_each_is_asked_of_its_own_method() -> None:
    for words, asked in (
        (["list", "orders"], ("dead_list", {"names": ["orders"]})),
        (["show", "a:b/1"], ("dead_show", {"id": "a:b/1"})),
        (["retry", "all"], ("dead_retry", {"ids": ["all"]})),
        (["drop", "a:b/1", "c"], ("dead_drop", {"ids": ["a:b/1", "c"]})),
    ):
        answers = letter(1) | {"letters": [], "to_be_retried": {}, "more": False, "body": "", "cut": False}
        client = Answering(answers | {"done": [], "failed": [], "waiting": {}})
        deadctl.run(cast(ControlClient, client), words[0], words[1:], as_json=False)
        ((method, params),) = client.asked
        assert (method, {key: value for key, value in (params or {}).items() if key != "before"}) == asked
