"""The examples for Prometheus and Grafana: their rules fire when they say, and ask for series that there are."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nsbridge.supervisor.cli.web import metrics
from tests.unit.test_web_metrics import document

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMETHEUS = EXAMPLES / "prometheus"
DASHBOARD = json.loads((EXAMPLES / "grafana/nsbridge.json").read_text(encoding="utf-8"))
NAME = re.compile(r"\bnsbridge_[a-z_]+")


def promtool(*words: str | Path) -> None:
    done = subprocess.run(["promtool", *words], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def series() -> set[str]:
    found = document()
    found.daemon["pid"] = 1
    text, _ = metrics.text(found, sees_pids=True)
    return set(re.findall(r"^# TYPE (\S+)", text.decode(), re.MULTILINE))


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.mark.parametrize(
    "words",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "nsbridge.rules.yml"),
        ("test", "rules", "nsbridge.test.yml"),
    ],
)
def test_promtool_accepts_the_rules_and_their_tests(words: tuple[str, ...]) -> None:
    promtool(*words)


def test_every_alert_has_a_test() -> None:
    alerts = re.findall(r"- alert: (\w+)", (PROMETHEUS / "nsbridge.rules.yml").read_text(encoding="utf-8"))
    tests = (PROMETHEUS / "nsbridge.test.yml").read_text(encoding="utf-8")
    assert alerts
    assert all(re.search(rf"alertname: {alert}\n\s*exp_alerts:\n", tests) for alert in alerts)


def test_rules_ask_for_series_that_there_are() -> None:
    rules = re.findall(r"expr: (.*)", (PROMETHEUS / "nsbridge.rules.yml").read_text(encoding="utf-8"))
    assert {name for rule in rules for name in NAME.findall(rule)} <= series()


def test_dashboard_asks_for_series_that_there_are() -> None:
    assert {name for expression in expressions() for name in NAME.findall(expression)} <= series()


def test_dashboard_s_expressions_are_promql(tmp_path: Path) -> None:
    """promtool parses them as recording rules. Grafana puts a value in the place of each variable."""
    plain = [expression.replace("$__rate_interval", "1m").replace("$", "") for expression in expressions()]
    rules = [{"record": f"r:{number}", "expr": expression} for number, expression in enumerate(plain)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", file)


def test_dashboard_s_panels_are_complete_and_do_not_overlap() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$(\w+)", " ".join(expressions()))) <= known
