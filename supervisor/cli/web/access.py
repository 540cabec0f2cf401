"""The rules about readers: on a loopback address any process may read, elsewhere only a client with the token.

* On a loopback address the Host header must name it. Otherwise a page of any site could read this one, by a name of its
  own that it lets resolve to 127.0.0.1 (DNS rebinding).
* Elsewhere a request has the token: `Authorization: Bearer TOKEN`, as Prometheus sends it, or as the password of any
  user, which a browser asks for. With --insecure there is neither, and a warning at the start.
* Only GET and HEAD are served, without a body. A request that has one is answered and cut off, not read.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CONTENT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_ALWAYS = {
    "content-security-policy": _CONTENT,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_CLOSE = {"connection": "close"}


def is_loopback(host: str) -> bool:
    """True if only processes of this host reach the address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """The rule around the application. `token` is None where none is needed; `any_host` where Host may be anything."""

    def __init__(self, app: ASGIApp, token: str | None, *, any_host: bool) -> None:
        self._app = app
        self._token = token
        self._any_host = any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> Response | None:
        if method not in ("GET", "HEAD"):
            return PlainTextResponse("only GET and HEAD: there is nothing to change here\n", 405, _CLOSE)
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return PlainTextResponse("no request here has a body\n", 413, _CLOSE)
        if not self._any_host and not is_loopback(_host(headers.get("host", ""))):
            return PlainTextResponse("this address is called localhost, 127.0.0.1 or [::1]\n", 421, _CLOSE)
        if self._token is not None and not hmac.compare_digest(_given(headers), self._token.encode()):
            ask = {"www-authenticate": 'Basic realm="nsbridge (the token is the password)", charset="UTF-8", Bearer'}
            return PlainTextResponse("the token is missing or wrong\n", 401, ask | _CLOSE)
        return None


def _host(header: str) -> str:
    """Return the name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def _given(headers: Headers) -> bytes:
    """Return the token that a request has; empty if it has none."""
    scheme, _, words = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return words.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(words.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""
