"""The documentation builds as a site without the network and without a warning; it has search and all keys."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    no_network = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    command: list[str | Path] = [sys.executable, ROOT / "docs/site/build.py", out]
    done = subprocess.run(command, env=os.environ | no_network, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_site_has_every_page_and_search(site: Path) -> None:
    pages = {path.relative_to(ROOT).with_suffix(".html") for path in (ROOT / "docs").glob("*.md")}
    assert {str(page) for page in pages if not (site / page).exists()} == set()
    assert "README.html" in (site / "index.html").read_text(encoding="utf-8")
    assert "troubleshooting" in (site / "searchindex.js").read_text(encoding="utf-8")
    assert (site / "search.html").exists()


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    text = (site / "README.html").read_text(encoding="utf-8")
    assert re.findall(r'(?:src|<link[^>]* href)="(https?://[^"]+)"', text) == []


def test_all_keys_of_the_registry_are_explained(site: Path) -> None:
    shown = (site / "docs/keys.html").read_text(encoding="utf-8")
    keys = set(re.findall(r'<tr[^>]*><td><p><code[^>]*><span class="pre">([\w.]+)</span>', shown))
    assert {"state_dir", "control.path", "window.messages", "out.key", "max_message"} <= keys
    explained = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert {key for key in keys if not re.search(rf"\b{key.rsplit('.', 1)[-1]}\b", explained)} == set()
