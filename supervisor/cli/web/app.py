"""The pages and answers of `nsbridge web`: each is made from the feed's data, or asks the daemon once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, cast

import jinja2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from nsbridge.config.errors import NoSuchNameError, NsbridgeError
from nsbridge.config.text import escape
from nsbridge.supervisor.cli.web import agentview, metrics, snapshot, view
from nsbridge.supervisor.cli.web.feed import Feed, Viewer

MOST_STREAMS = 32  # live readers
KEEP_ALIVE = 15.0  # seconds between two empty messages of an idle live stream
_SHOWN = 50  # events and lines of the log on a page
_REASONS = 10  # agents that /healthz names
_INSPECTING = 2  # requests to inspect that the daemon has from here at a time
_LIVE = "text/event-stream"
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_CHOSEN = {"events": ("daemon", "event"), "page": ("daemon", "event", "log", "rows")}  # what a live stream has


def create(feed: Feed) -> Starlette:
    """Return the application."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with feed.running():
            yield

    site = _Site(feed)
    routes = [
        Route("/", site.page),
        Route("/agent/{name}", site.agent),
        Route("/metrics", site.metrics),
        Route("/healthz", site.health),
        Route("/api/status", site.status),
        Route("/api/events", site.events),
        *(Route(f"/static/{name}", _file(name)) for name in ("nsbridge.css", "nsbridge.js", "icon.svg")),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={NsbridgeError: _failed})


class _Site:
    """One method for each path."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        loader = jinja2.PackageLoader("nsbridge.supervisor.cli.web", "templates")
        self._templates = jinja2.Environment(
            loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self._templates.globals["time_of"] = _time_of
        self._streams = 0
        self._inspecting = asyncio.Semaphore(_INSPECTING)

    async def page(self, request: Request) -> Response:
        """Show all agents, those that are chosen."""
        await self._feed.fresh()
        query = request.query_params
        sort = query.get("sort", "name")
        choice = view.Choice(query.get("q", ""), bool(query.get("trouble")), sort if sort in view.SORTS else "name")
        return self._rendered(
            "page.html",
            choice=choice,
            routes=view.chosen(self._feed.rows.values(), choice),
            counts=view.counts(self._feed.rows.values()),
            events=_last(self._feed.events, ""),
            log=_last(self._feed.log, ""),
        )

    async def agent(self, request: Request) -> Response:
        """Show one agent: its row, its status, its processes, its events and log."""
        name = request.path_params["name"]
        await self._feed.fresh()
        row, problem = self._feed.rows.get(name), ""
        sections: agentview.Sections | None = None
        if row is None and self._feed.snapshot is not None:
            raise NoSuchNameError(f"no agent {name!r}")
        try:
            document = await self._feed.daemon.call("status", {"names": [name]})
            async with self._inspecting:
                inspected = await self._feed.daemon.call("inspect", {"name": name})
            sections = agentview.sections(document, inspected)
        except NsbridgeError as error:
            problem = escape(str(error))
        return self._rendered(
            "agent.html",
            name=name,
            row=row,
            problem=problem,
            sections=sections,
            events=_last(self._feed.events, name),
            log=_last(self._feed.log, name),
        )

    async def metrics(self, request: Request) -> Response:
        """Answer Prometheus. If the daemon does not answer, that is a value (`nsbridge_up 0`), not an error."""
        found = await self._feed.fresh()
        text, kind = metrics.text(found, request.headers.get("accept", ""), sees_pids=self._feed.sees_pids)
        return Response(text, headers={"content-type": kind})

    async def health(self, _request: Request) -> Response:
        """Answer 200 if the daemon answers and no agent needs attention, else 503 with the reasons."""
        found = await self._feed.fresh()
        if found is None:
            return PlainTextResponse(f"{escape(self._feed.reason)}\n", 503)
        reasons = [escape(reason) for reason in snapshot.failing(found)]
        if not reasons:
            return PlainTextResponse("ok\n")
        more = [f"and {len(reasons) - _REASONS} more"] if len(reasons) > _REASONS else []
        return PlainTextResponse("\n".join([*reasons[:_REASONS], *more, ""]), 503)

    async def status(self, _request: Request) -> Response:
        """Answer with what `nsbridgectl status --json` prints."""
        return JSONResponse(await self._feed.status())

    async def events(self, request: Request) -> Response:
        """Stream what happens, as server-sent events; a page asks for its rows and the log too."""
        if self._streams >= MOST_STREAMS:
            return PlainTextResponse("too many live readers\n", 503, {"retry-after": "5"})
        query = request.query_params
        kinds = _CHOSEN.get(query.get("for", "events"), _CHOSEN["events"])
        return self._counted(StreamingResponse(self._stream(kinds, query.get("name", "")), media_type=_LIVE))

    def _counted(self, response: StreamingResponse) -> Response:
        """Count a live stream from now on until its answer has ended, however that ends."""
        self._streams += 1

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await response(scope, receive, send)
            finally:
                self._streams -= 1

        return cast(Response, answer)  # of a response, starlette uses this call alone

    async def _stream(self, kinds: tuple[str, ...], name: str) -> AsyncIterator[str]:
        async with self._feed.viewed() as viewer:
            yield "retry: 1000\n\n"
            async for kind, data in _messages(viewer):
                if kind == "":
                    yield ": alive\n\n"
                elif kind in kinds and (shown := _about(kind, data, name)):
                    yield f"event: {kind}\ndata: {json.dumps(shown)}\n\n"

    def _rendered(self, template: str, **values: Any) -> HTMLResponse:
        text = self._templates.get_template(template).render(daemon=self._feed.state(), **values)
        return HTMLResponse(text)


async def _messages(viewer: Viewer) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Yield the messages of a viewer until it is dropped; an empty kind keeps the connection alive."""
    while True:
        try:
            message = await asyncio.wait_for(viewer.queue.get(), KEEP_ALIVE)
        except TimeoutError:
            yield "", {}
            continue
        if message is None:
            return
        yield message


def _about(kind: str, data: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return what of a message is about the agent `name`, all if it is empty; None if nothing is."""
    if not name or kind == "daemon":
        return data
    if kind == "rows":
        return data | {"rows": [row for row in data["rows"] if row["name"] == name], "gone": []}
    return data if data.get("name") in (name, snapshot.route_of(name)) else None


def _last(records: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the last records about the agent, or of all, the newest first."""
    found = [record for record in records if not name or record.get("name") in (name, snapshot.route_of(name))]
    return found[: -_SHOWN - 1 : -1]


def _time_of(record: dict[str, Any]) -> str:
    """Return the time of day of a record: 2026-11-23T19:00:00.123Z → 19:00:00.123."""
    return str(record.get("time", "")).partition("T")[2].rstrip("Z")


def _file(name: str) -> Any:
    content = resources.files("nsbridge.supervisor.cli.web").joinpath("static", name).read_bytes()
    kind = _TYPES[name.rpartition(".")[2]]

    async def serve(_request: Request) -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return serve


async def _failed(_request: Request, error: Exception) -> Response:
    """Answer with an error of the daemon, or report that it does not answer."""
    missing = isinstance(error, NoSuchNameError)
    return JSONResponse({"error": escape(str(error))}, 404 if missing else 503)
