"""The server: addresses, what they take, and what is refused.

Everything that a page shows is a function of its address, so visitors do not see each other. Only pictures that were added are
kept, in memory (``cli.explore.pictures``). Work is done in turns, one message at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cli.corrupt import Corrupt
from cli.explore.pictures import check_bytes
from cli.explore.stream import FAILED, Turns, in_turns, message
from cli.explore.studio import SIZES, Samples, Studio
from cli.scene import FlowOptions
from lbm_warp.checks import InputError, check_choice, check_integer, check_number

PAGE = Path(str(resources.files("cli.explore") / "page"))
MOST_STREAMS = 64

# Nothing is loaded from elsewhere, and no other page may show this one or send it requests.
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def application(device: torch.device, runs: Path, *, local: bool = True) -> Starlette:
    """The page as an ASGI application; ``state.studio`` makes what it shows.

    Args:
        device: where to compute.
        runs: folder with run folders.
        local: whether only names of this machine are answered, which other sites cannot take (DNS rebinding).
    """
    desk = Desk(Studio(device, runs))
    routes = [
        Route("/", desk.page),
        Mount("/page", StaticFiles(directory=PAGE)),
        Route("/api/choices", desk.choices),
        Route("/api/pictures", desk.add_picture, methods=["POST"]),
        Route("/api/trajectory", desk.trajectory),
        Route("/api/film", desk.film),
        Route("/api/samples", desk.samples),
        Route("/api/sampled-film", desk.sampled_film),
        Route("/api/restored", desk.restored),
    ]
    hosts = ["localhost", "127.0.0.1"] if local else ["*"]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(Guard)]
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={InputError: refused, Exception: failed})
    app.state.studio = desk.studio
    return app


async def refused(_: Request, error: Exception) -> Response:
    """What is wrong with a request, in words."""
    return JSONResponse({"error": str(error)}, status_code=400)


async def failed(_: Request, error: Exception) -> Response:
    """What is wrong with the server goes to its terminal."""
    return JSONResponse({"error": FAILED}, status_code=500)


class Guard:
    """Adds the headers to every answer, and refuses requests that another site's page makes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        app: Callable[..., Awaitable[None]] = self.app
        if dict(scope.get("headers", ())).get(b"sec-fetch-site") in (b"cross-site", b"same-site") and scope["path"] != "/":
            app = JSONResponse({"error": "requests of other sites are not answered"}, status_code=403)
        await app(scope, receive, with_headers)


class Desk:
    """Reads requests, hands them to the studio, sends what it makes."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.turns = Turns()
        self.streams = threading.BoundedSemaphore(MOST_STREAMS)

    async def page(self, _: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    async def choices(self, _: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self.studio.choices))

    async def add_picture(self, request: Request) -> Response:
        """The body is the file. Pages of other sites cannot send this type without being asked for permission."""
        if request.headers.get("content-type") != "application/octet-stream":
            raise InputError("a picture is sent as application/octet-stream")
        data = bytearray()
        async for part in request.stream():
            data += part
            check_bytes(len(data))

        return JSONResponse(await self.in_turn(partial(self.studio.pictures.add, bytes(data))))

    async def trajectory(self, request: Request) -> Response:
        query = request.query_params
        return self.stream(self.studio.trajectory(corruption(query), query.get("picture", "chelsea"), number(query, "frames", 96)))

    async def film(self, request: Request) -> Response:
        options, name = corruption(request.query_params), request.query_params.get("picture", "chelsea")
        return Response(await self.in_turn(partial(self.studio.film, options, name)), media_type="video/mp4")

    async def samples(self, request: Request) -> Response:
        return self.stream(self.studio.samples(samples(request.query_params)))

    async def sampled_film(self, request: Request) -> Response:
        film = partial(self.studio.sampled_film, samples(request.query_params))
        return Response(await self.in_turn(film), media_type="video/mp4")

    async def restored(self, request: Request) -> Response:
        query = request.query_params
        name, run, level = query.get("picture", "degraded"), query.get("model", "emoji"), number(query, "level", None, int)
        return self.stream(self.studio.restored(name, run, level, number(query, "samples", 4), number(query, "seed", 0)))

    async def in_turn(self, make: Callable[[], Any]) -> Any:
        """What ``make()`` gives, made in one turn."""

        def made() -> Any:
            with self.turns:
                return make()

        return await run_in_threadpool(made)

    def stream(self, messages: Iterator[bytes]) -> Response:
        """The messages as they are made; too many streams at a time are refused."""

        def counted() -> Iterator[bytes]:
            if not self.streams.acquire(blocking=False):
                yield message({"kind": "error", "text": f"{MOST_STREAMS} pages are being served; try again in a moment"})
                return
            try:
                yield from in_turns(messages, self.turns)
            finally:
                self.streams.release()

        return StreamingResponse(counted(), media_type="application/octet-stream")


def number(query: Mapping[str, str], name: str, usual: Any, kind: Callable[[str], Any] | None = None) -> Any:
    """A number of the query, of the type of its usual value."""
    text = query.get(name, "")
    try:
        return (kind or type(usual))(text) if text else usual
    except ValueError:
        raise InputError(f"{name} must be a number, got {text[:40]!r}") from None


def samples(query: Mapping[str, str]) -> Samples:
    """The samples that a query describes."""
    model, mode, label = query.get("model", Samples.model), query.get("mode", Samples.mode), query.get("label") or None
    num, seed, steps = number(query, "num", Samples.num), number(query, "seed", 0), number(query, "steps", None, int)
    return Samples(model, num, seed, steps, label, number(query, "guidance", 1.0), mode)


def corruption(query: Mapping[str, str]) -> Corrupt:
    """The options of cli.corrupt that a query describes.

    Raises:
        InputError: if one is out of its range.
    """
    size, process = number(query, "size", 256), query.get("process") or None
    if size not in SIZES:
        raise InputError(f"size must be one of {', '.join(map(str, SIZES))}, got {size}")
    peclet, seed = number(query, "peclet", None, float), number(query, "seed", 0)
    if peclet is not None:
        check_number("peclet", peclet, 0.0, 2000.0)
    check_integer("seed", seed, 0, 2**63 - 1)
    if process is not None:
        return Corrupt(size=size, process=process, peclet=peclet, seed=seed)
    sigma, time, octaves = number(query, "sigma", 0.08), number(query, "time", 0.0), number(query, "octaves", 4)
    check_number("sigma", sigma, 0.01, 0.5)
    check_number("time", time, 0.0, 100.0)
    check_integer("octaves", octaves, 1, 8)
    check_choice("turbulence", query.get("turbulence", "curl-noise"), ("curl-noise", "spectral"))
    turbulence: Literal["curl-noise", "spectral"] = "spectral" if query.get("turbulence") == "spectral" else "curl-noise"
    octaves, strokes = octaves if turbulence == "curl-noise" else FlowOptions.octaves, query.get("strokes") or None
    flow = FlowOptions("0.5", f"{sigma:g}L", turbulence, octaves, strokes, time)
    return Corrupt(size=size, peclet=peclet, seed=seed, flow=flow)
