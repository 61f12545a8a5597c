"""The browser front: one page, frames over a WebSocket, several players who share one model.

    python examples/human_play.py --web                        # this machine only: http://127.0.0.1:8000
    python examples/human_play.py --web --host 0.0.0.0         # everybody who has the token that is printed

Routes: ``/`` the page; ``/page/*`` its files; ``/play`` the WebSocket (`web_link`); ``POST /picture`` a picture to start from;
``/clip`` the last half minute as mp4; ``/replay`` the replay file. The last three name the session in the header X-Session.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from world_model.config import ModelConfig
from yume_gym.play.session import Session
from yume_gym.play.start import Twin
from yume_gym.play.web_guard import Guard, UploadRefused, is_loopback, read_picture, read_upload
from yume_gym.play.web_link import Link
from yume_gym.play.web_lobby import Lobby, Player

PAGE = Path(__file__).parent / "page"
TOKEN_BYTES = 18
MAX_MESSAGE = 16 * 1024  # bytes of one message from a page
PING = 5.0  # seconds between two pings; a page that answers none is gone


def check_page(config: ModelConfig) -> None:
    """Raises ValueError for a model that the page has no keys for."""
    if config.action.kind != "first_person":
        raise ValueError(
            f"the page has the keys of first-person worlds only, {config.name!r} has {config.action.kind} actions: "
            "play it in a window, without --web"
        )


def create_app(lobby: Lobby, host: str = "127.0.0.1", token: str | None = None) -> Starlette:
    """The application that serves `lobby`.

    host: the address it will be bound to. token: what a browser has to show; it may be None on a loopback address only
    (ValueError otherwise).
    """
    if token is None and not is_loopback(host):
        raise ValueError(f"{host!r} can be reached from other machines: a token is needed there")

    decoding = asyncio.Semaphore(1)  # a picture of the largest size takes much memory while it is read

    async def page(request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    async def play(socket: WebSocket) -> None:
        await socket.accept()
        await Link(socket, lobby).run()

    async def picture(request: Request) -> Response:
        player = _player(lobby, request)
        try:
            data = await read_upload(request)
            size = lobby.config.height, lobby.config.width
            async with decoding:
                player.picture = await asyncio.to_thread(read_picture, data, *size)
        except UploadRefused as error:
            return JSONResponse({"message": str(error)}, status_code=error.status)
        return Response(status_code=204)

    async def clip(request: Request) -> Response:
        return await _download(lobby, request, "dream.mp4", lambda session, path: session.save_clip(path))

    async def replay(request: Request) -> Response:
        return await _download(lobby, request, "dream.replay.json", lambda session, path: session.save_replay(path))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        keeping = asyncio.create_task(lobby.keep())
        yield
        keeping.cancel()

    return Starlette(
        routes=[
            Route("/", page),
            WebSocketRoute("/play", play),
            Route("/picture", picture, methods=["POST"]),
            Route("/clip", clip),
            Route("/replay", replay),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        middleware=[Middleware(Guard, loopback_only=is_loopback(host), token=token)],
        exception_handlers={LookupError: _unknown_session},
        lifespan=lifespan,
    )


async def _download(lobby: Lobby, request: Request, name: str, save: Callable[[Session, Path], Path]) -> Response:
    """What `save` writes of the asking player's session, as a download; 409 and a message where nothing can be saved."""
    player = _player(lobby, request)
    if player.session is None or player.saving:
        return JSONResponse({"message": "not now: try again in a moment"}, status_code=409)
    folder = tempfile.TemporaryDirectory(prefix="yume-")
    player.saving = True
    try:
        path = await asyncio.to_thread(save, player.session, Path(folder.name) / name)
    except (ValueError, OSError) as error:
        folder.cleanup()
        return JSONResponse({"message": str(error)}, status_code=409)
    except BaseException:
        folder.cleanup()
        raise
    finally:
        player.saving = False
    return FileResponse(path, filename=name, background=BackgroundTask(folder.cleanup))


def serve(
    lobby: Lobby,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve the players of `lobby` until interrupted.

    host: 127.0.0.1 keeps to this machine; any other demands a token, and one is made if none is given. port 0 takes a free one.
    announce: called with the address when it can be opened. Raises ValueError for a model whose actions are not first-person ones.
    """
    check_page(lobby.config)
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(TOKEN_BYTES)
    if lobby.twin:
        Twin(lobby.config).begin(0, None)  # compiles the street before anybody waits for it
    server = Server(create_app(lobby, host, token), host, port, lambda address: announce(_address(address, token)))
    with contextlib.suppress(KeyboardInterrupt):  # how it is meant to end
        server.run()


class Server(uvicorn.Server):
    """uvicorn with this application's settings; `announce` is called with "http://host:port" once it listens."""

    def __init__(self, app: Starlette, host: str, port: int, announce: Callable[[str], None] | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                log_level="warning",
                ws_max_size=MAX_MESSAGE,
                ws_ping_interval=PING,
                ws_ping_timeout=2 * PING,
                ws_per_message_deflate=False,
                timeout_graceful_shutdown=2,
            )
        )
        self._announce = announce

    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        if self._announce and self.started:
            self._announce(self.address)

    @property
    def address(self) -> str:
        """Where it listens, such as "http://127.0.0.1:8000"; only once it has started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _address(address: str, token: str | None) -> str:
    return address + (f"/?token={token}" if token else "/")


def _player(lobby: Lobby, request: Request) -> Player:
    player = lobby.find(request.headers.get("x-session", ""))
    if player is None:
        raise LookupError("this session is unknown or over: reload the page")
    return player


async def _unknown_session(request: Request, error: Exception) -> Response:
    return JSONResponse({"message": str(error.args[0])}, status_code=404)
