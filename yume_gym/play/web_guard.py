"""What stands between the network and the model: who may ask, from which page, and what may be uploaded."""

from __future__ import annotations

import io
import ipaddress
import secrets
import warnings
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
from PIL import Image, UnidentifiedImageError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yume_gym.pictures import load_picture

MAX_UPLOAD = 8 * 2**20  # bytes
MAX_PIXELS = 40_000_000
FORMATS = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "WEBP": b"RIFF"}  # and how such files begin
COOKIE = "yume_token"
REFUSED = 4003  # WebSocket close code: not allowed, do not try again

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def is_loopback(host: str) -> bool:
    """Whether an address, or "localhost", means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware: refuses strangers before anything else happens.

    - loopback_only: the Host header must name this machine, so that a foreign name which was made to point here (DNS
      rebinding) reaches nothing.
    - An Origin header, which browsers send with WebSockets and uploads, must be this page's own.
    - token: must come in the address (``?token=``; it is then moved to a cookie), in that cookie, or as Bearer.
    """

    def __init__(self, app: ASGIApp, loopback_only: bool, token: str | None) -> None:
        self._app, self._loopback_only, self._token = app, loopback_only, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            return await _refuse(scope, receive, send, *refusal)
        if scope["type"] == "http" and scope["path"] == "/" and self._token and _query(scope).get("token"):
            return await self._move_token(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """(HTTP status, what to say) for who is not let in."""
        host = headers.get("host", "")
        if self._loopback_only and not is_loopback(_hostname(host)):
            return 403, "This server is for its own machine only: open it as http://127.0.0.1 or http://localhost."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "Only this server's own page may talk to it."
        if self._token and not self._shown(scope, headers):
            return 401, "A token is needed: open the address that the server printed, ending in ?token=..."
        return None

    def _shown(self, scope: Scope, headers: Headers) -> bool:
        """Whether the token was shown in one of the three ways. Comparing takes the same time for all wrong ones."""
        assert self._token is not None
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        candidates = [*_query(scope).get("token", []), _cookie(headers, self._cookie(headers)), bearer]
        right = self._token.encode()
        return any([secrets.compare_digest(candidate.encode(), right) for candidate in candidates])

    @staticmethod
    def _cookie(headers: Headers) -> str:
        """The cookie's name; browsers do not keep ports apart, so that several servers need several names."""
        return f"{COOKIE}_{headers.get('host', '').rpartition(':')[2] or 'default'}".replace("]", "").replace(".", "_")

    async def _move_token(self, scope: Scope, receive: Receive, send: Send) -> None:
        """From the address, which is kept in histories, to a cookie that scripts cannot read."""
        rest = {name: values for name, values in _query(scope).items() if name != "token"}
        response = RedirectResponse("./" + (f"?{urlencode(rest, doseq=True)}" if rest else ""), status_code=303)
        name = self._cookie(Headers(scope=scope))
        response.set_cookie(
            name, self._token or "", httponly=True, samesite="strict", secure=scope["scheme"] == "https"
        )
        await response(scope, receive, send)


class UploadRefused(ValueError):
    """Why a picture was not taken, in words for the player; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_upload(request: Request) -> bytes:
    """The request's body. Raises UploadRefused (413) as soon as it is larger than `MAX_UPLOAD`, read or announced."""
    too_large = UploadRefused(413, f"The picture is larger than {MAX_UPLOAD // 2**20} MB: choose a smaller one.")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > MAX_UPLOAD:
        raise too_large
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_UPLOAD:
            raise too_large
    return bytes(data)


def read_picture(data: bytes, height: int, width: int) -> np.ndarray:
    """An uploaded file as uint8 [height, width, 3]. Only PNG, JPEG and WebP are given to a decoder at all.

    Raises UploadRefused (415 for other kinds of files, 400 for broken, tiny or huge pictures).
    """
    if not any(data.startswith(magic) for magic in FORMATS.values()):
        raise UploadRefused(415, "This is not a picture that can be read: choose a PNG, JPEG or WebP file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise UploadRefused(400, f"The picture has more than {MAX_PIXELS // 10**6} million pixels.")
                picture.verify()
            with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as picture:  # verifying uses a picture up
                return load_picture(picture, height, width)
    except UploadRefused:
        raise
    except UnidentifiedImageError as error:
        raise UploadRefused(400, "The picture cannot be read: it is damaged, or no picture at all.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UploadRefused(400, f"The picture cannot be used: {error}") from error


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, message: str) -> None:
    if scope["type"] == "http":
        response = PlainTextResponse(message + "\n", status_code=status, headers=HEADERS)
        return await response(scope, receive, send)
    await receive()  # the request to connect; a page is told why only once connected
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": REFUSED, "reason": message})


def _query(scope: Scope) -> dict[str, list[str]]:
    return parse_qs(scope["query_string"].decode("latin-1"))


def _cookie(headers: Headers, name: str) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _hostname(host: str) -> str:
    """Of a Host header, without the port: "[::1]:8000" -> "[::1]"."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
