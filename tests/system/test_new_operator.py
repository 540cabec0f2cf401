"""What a new operator runs into in the first minutes: mistakes that look healthy, and reasons that come late."""

from __future__ import annotations

from pathlib import Path

from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged
from tests.system.test_relay import route


def test_dry_run_warns_of_an_unknown_container(tmp_path: Path, runc_container: Factory) -> None:
    """A typo in a name is valid, and the agent would wait for that container."""
    web, legacy = runc_container(), runc_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        text = daemon.config.read_text(encoding="utf-8")
        daemon.config.write_text(text.replace(legacy.spec, f"{legacy.spec}x"), encoding="utf-8")
        plan = daemon.call("reload", dry_run=True)
        name = legacy.spec.removeprefix("runc:")
        (warning,) = plan["warnings"]
        assert warning.startswith(f"runc knows no container {name}x (yet); it knows {name}, ")
        assert web.spec.removeprefix("runc:") in warning
        assert plan["restart"] == ["r"]
        daemon.config.write_text(text, encoding="utf-8")
        assert daemon.call("reload", dry_run=True)["warnings"] == []
