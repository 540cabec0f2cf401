"""Builds the documentation as a site with search, offline: `make site`, or

    python docs/site/build.py [OUT]

It copies README, docs/ and what they link to into a tree, writes the page of all configuration keys from the registry
there, and runs Sphinx on it. A warning, such as a link that leads nowhere, is an error.
"""

import dataclasses
import enum
import re
import shutil
import subprocess
import sys
import tempfile
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

import nsbridge.agents.endpoints.kinds  # noqa: F401  (it registers the kinds)
from nsbridge.config import schema
from nsbridge.config.kind import KINDS

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CHANGELOG.md", "SECURITY.md", "docs/*.md", "examples/**/*.md")
TABLES = (("[daemon]", schema.DaemonConfig), ("[route.NAME]", schema.RouteConfig))
NOT_KEYS = {"name", "agents"}  # of a route: where its tables stand
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s:#]+)(#[\w-]*)?\)")
_REDIRECT = '<!doctype html><meta http-equiv="refresh" content="0; url=README.html"><title>nsbridge</title>\n'


def stage(tree: Path) -> None:
    """Copy the pages, what they link to, and the configuration of Sphinx into `tree`."""
    for page in sorted({path for pattern in PAGES for path in ROOT.glob(pattern)}):
        target = tree / page.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_relinked(page, tree), encoding="utf-8")
    (tree / "docs/keys.md").write_text(keys_page(), encoding="utf-8")
    shutil.copy(Path(__file__).with_name("conf.py"), tree)
    (tree / "_templates").mkdir()
    (tree / "_templates/index.html").write_text(_REDIRECT, encoding="utf-8")


def _relinked(page: Path, tree: Path) -> str:
    """Return a page's text; copy the files that it links to. A link to a directory leads to its README, if any."""

    def relink(found: re.Match[str]) -> str:
        target = (page.parent / found[2]).resolve()
        if target.is_dir():
            return f"[{found[1]}]({found[2]}/README.md)" if (target / "README.md").exists() else found[1]
        if target.suffix != ".md" and target.is_file() and target.is_relative_to(ROOT):
            copy = tree / target.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, copy)
        return found[0]

    text = _LINK.sub(relink, page.read_text(encoding="utf-8"))
    if page.name == "configuration.md":
        text = text.replace("# Configuration\n", "# Configuration\n\n[All keys at a glance](keys.md)\n", 1)
    if page.name == "index.md":
        text = text.replace(
            "* [Configuration](configuration.md)", "* [All keys](keys.md), [configuration](configuration.md)"
        )
    return text


def keys_page() -> str:
    """Return the page of all keys, with their defaults, made from the registry of the configuration."""
    lines = ["# All keys", "", "Made from the program itself. [Configuration](configuration.md) explains each."]
    for title, table in TABLES:
        lines += _section(f"`{title}`", "", _keys(table, ""))
    agent = [("container", "required"), ("user", "the owner of the endpoint")]
    lines += _section("`[route.NAME.agent.NAME]`", "", [*agent, *((name, "exactly one of these") for name in KINDS)])
    for name, kind in KINDS.items():
        lines += _section(f"Endpoint `{name}`", (kind.__doc__ or "").split("\n")[0], _keys(kind, ""))
    return "\n".join(lines) + "\n"


def _section(title: str, text: str, keys: Iterable[tuple[str, str]]) -> list[str]:
    rows = [f"| `{key}` | {default} |" for key, default in keys]
    return ["", f"## {title}", "", text, "", "| key | default |", "|---|---|", *rows]


def _keys(table: type, above: str) -> Iterator[tuple[str, str]]:
    """Yield (key, default) of a table and of the tables in it."""
    hints = typing.get_type_hints(table)
    for field in dataclasses.fields(table):  # type: ignore[arg-type]
        key = above + field.name.rstrip("_")
        may_be = {hints[field.name], *typing.get_args(hints[field.name])} - {type(None)}
        tables = [each for each in may_be if dataclasses.is_dataclass(each)]
        if field.name not in NOT_KEYS and not (tables and may_be <= {hints[field.name], *tables}):
            yield key, _default(field)
        if field.name not in NOT_KEYS:
            yield from ((name, default) for each in tables for name, default in _keys(each, f"{key}."))


def _default(field: "dataclasses.Field[object]") -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if field.name == "mode" and isinstance(value, int):
        return f'`"{value:04o}"`'
    return f"`{list(value) if isinstance(value, tuple) else value!r}`".replace("'", '"')


def build(out: Path) -> str:
    """Build the site into `out`; return what Sphinx printed. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as place:
        stage(Path(place))
        sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", f"{place}/.doctrees"]
        done = subprocess.run([*sphinx, place, out], check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        raise subprocess.CalledProcessError(done.returncode, "sphinx")
    return done.stdout


if __name__ == "__main__":
    build(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "build/site")
