"""A configuration from TOML: the only place that sees raw tables, and the only one that uses cattrs.

cattrs makes the dataclasses of tables.py and schema.py, and collects what is wrong in each; the readers of values.py
take the place of its own conversions, which would make 5 of "5". One wrong value must not hide what is wrong elsewhere,
so the daemon, each route and each agent are structured by themselves, and check.py's rules see
all that was read without an error.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cattrs import BaseValidationError, ClassValidationError, Converter, ForbiddenExtraKeysError, override
from cattrs.gen import make_dict_structure_fn

from nsbridge.config import check, dropins, names, values
from nsbridge.config.document import Table, read_tables, read_text
from nsbridge.config.dropins import File
from nsbridge.config.errors import ConfigError
from nsbridge.config.kind import KINDS
from nsbridge.config.problems import InvalidValue, KeyPath, Problem, nearest, unknown_key
from nsbridge.config.readers import table
from nsbridge.config.schema import (
    AgentConfig,
    Config,
    Endpoint,
    RouteConfig,
    User,
)
from nsbridge.config.tables import TABLE_READERS, Document, DropIn, RouteTable, agent_table

T = TypeVar("T")


def _essential(table: type) -> Iterator[str]:
    """Yield the keys of a kind's table without which two agents cannot be compared: its ends, and all within them."""
    for field in dataclasses.fields(table):
        if field.name in ("out", "in_") or not issubclass(table, Endpoint):
            yield _key(field.name)
            for inner in _tables_of(table, field):
                yield from _essential(inner)


def _tables_of(table: type, field: dataclasses.Field[Any]) -> Iterator[type]:
    """Yield the dataclasses of which one is the field's value."""
    hints = typing.get_type_hints(table)
    for cls in typing.get_args(hints[field.name]):
        if isinstance(cls, type) and dataclasses.is_dataclass(cls):
            yield cls


def load_trusted(path: str) -> Config:
    """Load a configuration that root acts on: like `load`, but refuse a file that other users can change."""
    return load(path, by_root=True)


def load(path: str, *, by_root: bool = False, drop_ins: bool = True) -> Config:
    """Return the configuration in the file at `path` and in its drop-ins (dropins.py).

    Raises ConfigError with all problems, one line each, if a file cannot be read or must not be used.
    """
    main = File(path, *read_text(path, by_root=by_root))
    others = dropins.read(path, by_root=by_root) if drop_ins and not main.problems else []
    return dataclasses.replace(_assembled([main, *others]), source=str(Path(path).absolute()))


def parse(text: str, source: str) -> Config:
    """Return the configuration in `text`; the problems and the result name `source` as its file.

    Raises ConfigError as `load` does.
    """
    return _assembled([File(source, text, [])])


def _assembled(files: Sequence[File]) -> Config:
    """Return the configuration that the files make together; the first one is not a drop-in. Raises ConfigError."""
    main, *drop_ins = parts = [_read_part(file, DropIn if number else Document) for number, file in enumerate(files)]
    lines = [problem.line(part.name) for part in parts for problem in part.problems]
    routes: dict[str, _Route] = {}
    origins: dict[str, str] = {}
    for part in parts:
        for route in part.routes:
            if route.name in routes:
                lines.append(dropins.declared_again(route.name, origins[route.name]).line(part.name))
            else:
                routes[route.name], origins[route.name] = route, part.name
    spanning = check.host_problems([route.sides for route in routes.values()])
    lines += [problem.line(origins[problem.path[1]]) for problem in spanning]
    if lines or not isinstance(main.document, Document):
        raise ConfigError(lines)
    configs = tuple(route.config() for route in routes.values())
    return Config(main.document.daemon, configs, main.name, tuple(part.name for part in drop_ins))


@dataclass(frozen=True, slots=True)
class _Part:
    """Result of reading one file."""

    name: str
    document: Document | DropIn | None
    routes: list[_Route]
    problems: list[Problem]


def _read_part(file: File, cls: type[Document | DropIn]) -> _Part:
    if file.problems:
        return _Part(file.name, None, [], file.problems)
    tables, problems, twice = read_tables(file.text)
    if tables is None:
        return _Part(file.name, None, [], problems)
    if cls is DropIn:
        tables, strange = dropins.only_routes(tables)
        problems += strange
    document, found = _structure(tables, cls, ())
    routes = [_read_route(name, raw, twice) for name, raw in _subtable(tables, "route").items()]
    problems += [*found, *(problem for route in routes for problem in route.problems)]
    return _Part(file.name, document, routes, problems)


@dataclass(frozen=True, slots=True)
class _Route:
    """Result of reading one `[route.NAME]`."""

    name: str
    table: RouteTable | None
    sides: list[check.Side]
    problems: list[Problem]

    def config(self) -> RouteConfig:
        """Return the checked route; call it only if no problem was found."""
        table, (first, second) = self.table, (side.agent for side in self.sides)
        assert table is not None and first is not None and second is not None  # noqa: S101, PT018  (no problem was found)
        return RouteConfig(
            self.name, (first, second), table.delivery, table.in_doubt, table.window, table.autostart, table.fsync
        )


def _read_route(name: str, raw: object, twice: set[KeyPath]) -> _Route:
    path = ("route", name)
    table, found = _structure(raw, RouteTable, path)
    problems = [*_name_problems(values.route_name, path), *found]
    sides = []
    for agent_name, agent in _subtable(raw, "agent").items():
        side, found = _read_agent((*path, "agent", agent_name), agent)
        sides.append(side)
        problems += found
    declared_twice = any(other[: len(path)] == path for other in twice)  # then the number of agents says nothing
    if len(sides) != check.AGENTS and not declared_twice and _is_clear(raw, "agent", RouteTable):
        problems.append(check.agent_count(path, [side.path[-1] for side in sides]))
    problems += check.route_problems(sides)
    return _Route(name, table, sides, problems)


def _read_agent(path: KeyPath, raw: object) -> tuple[check.Side, list[Problem]]:
    """Read one agent's table; the list holds the problems of the table alone, the Side what must agree with others."""
    if not KINDS:
        raise RuntimeError("no kind of endpoint is registered: import nsbridge.agents.endpoints.kinds")
    cls = agent_table(tuple(KINDS.values()))
    table, found = _structure(raw, cls, path)
    problems = [*_name_problems(values.agent_name, path), *found]
    if table is None:
        table, _ = _structure(_without_details(raw, path, found), cls, path)
    name = names.joined(path[1], path[3])
    present = [key for key in KINDS if _stands(raw, key, cls)]
    ends = _subtable(raw, present[0]) if len(present) == 1 else {}
    if len(present) != 1 or not _is_clear(raw, present[0], cls):
        problems += _endpoint_count(path, raw, present)
        return check.Side(path, name, None, out=False, in_=False, agent=None), problems
    key = present[0]
    out, in_ = (_stands(ends, end, KINDS[key]) for end in ("out", "in"))
    if not out and not in_:
        fix = "out is what leaves the container, in what enters it: give it at least one"
        problems.append(Problem((*path, key), "has neither out nor in", fix))
    agent = None
    if table is not None:
        user = table.user if isinstance(table.user, User) else None
        agent = AgentConfig(name, table.container, getattr(table, key), user, table.user == values.OWNER)
    return check.Side(path, name, key, out, in_, agent), problems


def _name_problems(reader: values.Reader[str], path: KeyPath) -> list[Problem]:
    try:
        reader(path[-1])
    except InvalidValue as refused:
        return [Problem(path, refused.what, refused.fix)]
    return []


def _endpoint_count(path: KeyPath, raw: object, present: list[str]) -> list[Problem]:
    if len(present) > 1:
        fix = "keep one here, and make another route for another endpoint"
        return [Problem(path, f"an agent has exactly one endpoint, got {', '.join(present)}", fix)]
    meant_one = present or not isinstance(raw, dict) or any(isinstance(value, dict) for value in raw.values())
    if meant_one:  # it was complained of already, as an unknown key or a wrong type
        return []
    fix = f'add one of {", ".join(KINDS)}, like spool = {{ out = "/var/spool/orders/out" }}'
    return [Problem(path, "an agent has exactly one endpoint, got none", fix)]


def _subtable(raw: object, key: str) -> Table:
    """Return the table at `key`, empty if there is none (if it is something else, `_structure` complains of it)."""
    value = raw.get(key) if isinstance(raw, dict) else None
    return value if isinstance(value, dict) else {}


def _stands(raw: object, key: str, cls: type) -> bool:
    """True if `raw`, a table for `cls`, has `key`, or an unknown one that was probably meant to be it."""
    if not isinstance(raw, dict):
        return False
    known = _keys(cls)
    return key in raw or any(nearest(other, known) == key for other in raw if other not in known)


def _is_clear(raw: object, key: str, cls: type) -> bool:
    """True if no problem hides what is at `key`: it is a table, or really absent."""
    if not isinstance(raw, dict):
        return False
    return isinstance(raw[key], dict) if key in raw else not _stands(raw, key, cls)


def _without_details(raw: object, path: KeyPath, problems: list[Problem]) -> object:
    """Return the agent's table without the keys that are wrong, or None if one of them is essential."""
    essential = {"container", *KINDS, *(key for table in KINDS.values() for key in _essential(table))}
    for problem in problems:
        inside = problem.path[len(path) :]
        if not inside or nearest(inside[-1], essential):
            return None
        raw = _without(raw, inside)
    return raw


def _without(raw: Any, path: KeyPath) -> Table:
    """Return a copy of `raw` without the key at `path`, which is in it: cattrs has been down that path."""
    key, rest = path[0], path[1:]
    return {**raw, key: _without(raw[key], rest)} if rest else {k: v for k, v in raw.items() if k != key}


# --- cattrs ---------------------------------------------------------------------------------------------------------


def _structure(raw: object, cls: type[T], path: KeyPath) -> tuple[T | None, list[Problem]]:
    """Build an instance of `cls` from the table at `path`; return it, or None, and what is wrong."""
    try:
        return _CONVERTER.structure(raw, cls), []
    except (BaseValidationError, InvalidValue) as error:
        return None, list(_problems(error, path))


def _problems(error: Exception, path: KeyPath) -> Iterator[Problem]:
    """Yield the problems in cattrs' tree of exceptions, in the order of the dataclass's fields, unknown keys last."""
    if isinstance(error, InvalidValue):
        yield Problem(path, error.what, error.fix)
        return
    if not isinstance(error, ClassValidationError):
        raise error
    noted, others = error.group_exceptions()
    known = _keys(error.cl)
    missing = {_key(field.name): field.metadata.get("missing") for field in dataclasses.fields(error.cl)}
    unknown: list[str] = []
    for other in others:
        if isinstance(other, InvalidValue):  # of the table as a whole: __post_init__ raised it
            yield Problem(path, other.what, other.fix)
        elif isinstance(other, ForbiddenExtraKeysError):
            unknown += sorted(other.extra_fields)
        else:
            raise other
    for inner, note in noted:
        key = _key(note.name)
        if not isinstance(inner, KeyError):
            yield from _problems(inner, (*path, key))
        elif all(nearest(name, known) != key for name in unknown):
            yield Problem((*path, key), "is missing", f"add {missing[key]}")
    for name in unknown:
        yield unknown_key((*path, name), known)


def _key(field: str) -> str:
    """Return the TOML key of a field: `in` is a keyword in Python."""
    return field.rstrip("_")


def _keys(cls: type) -> list[str]:
    return [_key(field.name) for field in dataclasses.fields(cls)]


def _table_hook(cls: type[T], converter: Converter) -> Callable[[object, object], T]:
    """Return a function that reads a table into `cls`, with our readers for the values; unknown keys are problems."""
    readers = TABLE_READERS.get(cls, {})
    overrides: dict[str, Any] = {
        field.name: override(rename=_key(field.name), struct_hook=_as_hook(readers.get(field.name) or _reader(field)))
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]  # cls is a dataclass: the hook's predicate
    }
    structure = make_dict_structure_fn(cls, converter, **overrides)

    def read(value: object, _type: object) -> T:
        return structure(table(value), cls)

    return read


def _reader(field: dataclasses.Field[Any]) -> values.Reader[Any] | None:
    """Return the reader in a field's metadata (kind.reads)."""
    read: values.Reader[Any] | None = field.metadata.get("read")
    table: type | None = field.metadata.get("table")
    if read is None or table is None:
        return read
    return lambda value: _CONVERTER.structure(value, table) if isinstance(value, dict) else read(value)


def _as_hook(reader: values.Reader[T] | None) -> Callable[[object, object], T] | None:
    return None if reader is None else lambda value, _type: reader(value)


def _make_converter() -> Converter:
    converter = Converter(detailed_validation=True, forbid_extra_keys=True)
    converter.register_structure_hook_factory(dataclasses.is_dataclass, _table_hook)
    return converter


_CONVERTER = _make_converter()
