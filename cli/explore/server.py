"""The server: addresses, what they take, and what is refused.

Everything that a page shows is a function of its address, so visitors do not see each other. Only pictures that were added are
kept, in memory (``cli.explore.pictures``). Work is done in short turns (``cli.explore.stream``), fair between clients.

    GET  /api/choices       {processes, models, sizes}
    POST /api/pictures      the file as application/octet-stream -> {name, height, width}
    GET  /api/trajectory    stream: scene, frame, frame, ...; takes picture, size, frames, process, peclet, sigma, octaves,
                            turbulence, time, seed, strokes; at=0.3 sends the frame at this share of the way first
    GET  /api/film          the same query -> MP4; with progress=1 a stream: progress, progress, ..., film
    GET  /api/samples       stream: scene, frame, ...; takes model, num, seed, steps, label, guidance, mode
    GET  /api/sampled-film  the same query -> MP4; with progress=1 a stream
    GET  /api/restored      stream: scene, progress, ..., estimate, frame, ..., result; takes picture, model, degrade, level,
                            samples, seed; with model=photographs: scene, estimate, tile, ..., result; takes picture, blur,
                            noise, and, to degrade it first, degrade_blur, degrade_noise, seed
    POST /api/cancel        client and slot in the query (no slot: all); ends what is made there -> {ended: number}

Every request may say ``client=`` (a text that a page makes up for itself) and ``slot=`` (what it is for; by default the last word
of the address, "film" for both films). A newer request ends the older one in the same slot of the same client; so does a client
that leaves. Clients take turns, and so do the slots of one client; all films together count as one client more.

A stream is messages: the length of a JSON header (uint32, little-endian), the header, and the ``bytes`` that it announces.

    scene      of a trajectory: seconds: what all of it takes, about; warning: null, or words to show: the picture is smaller than
               asked for, because that would take too long; height and width are those that are sent.
               Of a restoration: own: [height, width] of the picture; height, width: at which it works; text: that in words.
               It comes again if another size turns out to be better
    progress   text; done, of: numbers (of = 0: not known yet); of a film also seconds
    estimate   level may be 0: nothing to restore, the result follows at once; clean: the probability of that;
               warning: null, or words to show: that, or that the picture does not look like what the model knows
    tile       of a photograph: top, left, height, width; the bytes are its pixels, and what is not known of them, white: +- 0.3
    film       the bytes are the MP4
    cancelled  text: the last message of a stream that was ended, by a newer one or by /api/cancel
    error      text: the last message of a stream that failed

An answer that is no stream has status 200, or 400 (what is wrong), 408 (it came too slowly), 409 (it was ended), 410 (the
picture is not here: send it again), 503 (too much at once), with {error: words}; so does a stream that is refused before it begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cli.corrupt import Corrupt
from cli.explore.pictures import Gone, check_bytes
from cli.explore.stream import FAILED, Busy, Ended, Turns, Work, film, message, told
from cli.explore.studio import MOST_RESTORED, SIZES, Samples, Studio
from cli.film import FPS
from cli.restore import Restore
from cli.sample import Results
from cli.scene import FlowOptions
from cli.video import encoded_video, held
from lbm_warp.checks import InputError, check_choice, check_integer, check_number

PAGE = Path(str(resources.files("cli.explore") / "page"))
FILMS = "films"  # their place in the circle of clients
MOST_ENCODERS = 2  # films that are encoded at a time; the others wait
MOST_ARRIVING = 2**26  # bytes of pictures that are on their way here
# Largest blur [pixels] and noise of a photograph, told or made.
PHOTOGRAPH = {"blur": 4.0, "noise": 0.25, "degrade_blur": 4.0, "degrade_noise": 0.25}
PATIENCE = 20.0  # for the next part of a picture [s]

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
        Route("/api/cancel", desk.cancel, methods=["POST"]),
    ]
    hosts = ["localhost", "127.0.0.1"] if local else ["*"]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(Guard)]
    handlers: dict[Any, Any] = {kind: partial(refused, status) for kind, status in REFUSED.items()}
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers | {Exception: failed})
    app.state.studio, app.state.turns = desk.studio, desk.turns
    return app


# Who has left reads no answer; there is none without a status.
REFUSED = {InputError: 400, TimeoutError: 408, Ended: 409, Gone: 410, ClientDisconnect: 499, Busy: 503}


async def refused(status: int, _: Request, error: Exception) -> Response:
    """What is wrong with a request, in words."""
    return JSONResponse({"error": str(error)}, status_code=status)


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


class Stream(StreamingResponse):
    """Messages of a work; it ends when the client leaves."""

    def __init__(self, work: Work, messages: AsyncIterator[bytes] | None = None) -> None:
        super().__init__(told(messages or work), media_type="application/octet-stream")
        self.work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.work.end()


class Desk:
    """Reads requests, hands them to the studio, sends what it makes."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.turns = Turns()
        self.arriving = 0
        # Files are read one at a time, and films are encoded, beside the turns.
        self.reader, self.encoders = ThreadPoolExecutor(1, "reader"), ThreadPoolExecutor(MOST_ENCODERS, "encoder")

    async def page(self, _: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    async def choices(self, _: Request) -> Response:
        return JSONResponse(await self.read(self.studio.choices))

    async def add_picture(self, request: Request) -> Response:
        """The body is the file. Pages of other sites cannot send this type without being asked for permission."""
        if request.headers.get("content-type") != "application/octet-stream":
            raise InputError("a picture is sent as application/octet-stream")
        return JSONResponse(await self.read(self.studio.pictures.add, await self.arrived(request)))

    async def arrived(self, request: Request) -> bytes:
        """The body of a request."""
        data = bytearray()
        try:
            parts = request.stream()
            while part := await asyncio.wait_for(anext(parts, b""), PATIENCE):
                data += part
                self.arriving += len(part)
                check_bytes(len(data))
                if self.arriving > MOST_ARRIVING:
                    raise Busy("many pictures are on their way here; try again in a moment")
        except TimeoutError:
            raise TimeoutError(f"nothing came for {PATIENCE:.0f} s; send the picture again") from None
        finally:
            self.arriving -= len(data)
        return bytes(data)

    async def trajectory(self, request: Request) -> Response:
        query = request.query_params
        options, at = corruption(query), number(query, "at", None, float)
        chosen = await self.read(self.studio.chosen, options, query.get("picture", "chelsea"), number(query, "frames", 96))
        return Stream(self.work(request, self.studio.trajectory(chosen, at)))

    async def film(self, request: Request) -> Response:
        query = request.query_params
        chosen = await self.read(self.studio.chosen_film, corruption(query), query.get("picture", "chelsea"))
        frames, count = self.studio.film(chosen), chosen.frames
        return await self.filmed(request, frames, count, chosen.seconds, partial(held, fps=FPS), FPS)

    async def samples(self, request: Request) -> Response:
        wanted = samples(request.query_params)
        pipeline = await self.read(self.studio.model, wanted.model)
        return Stream(self.work(request, self.studio.samples(pipeline, wanted)))

    async def sampled_film(self, request: Request) -> Response:
        wanted = samples(request.query_params)
        pipeline = await self.read(self.studio.model, wanted.model)
        count = len(pipeline.method.sampler.visited(pipeline.forward, steps=wanted.steps)) + 2 * Results.fps
        return await self.filmed(request, self.studio.sampled_film(pipeline, wanted), count, None, iter, Results.fps)

    async def restored(self, request: Request) -> Response:
        query = request.query_params
        picture, run = Path(query.get("picture", "degraded")), query.get("model") or "emoji"
        wanted, degrade = Restore((picture,), run, seed=number(query, "seed", 0)), number(query, "degrade", None, int)
        check_integer("seed", wanted.seed, 0, 2**63 - 1)
        if wanted.photographs:
            blur, noise, *given = (ranged(query, name, most) for name, most in PHOTOGRAPH.items())
            wanted = replace(wanted, blur=blur, noise=noise)
        else:
            level, count = number(query, "level", None, int), number(query, "samples", Restore.samples)
            check_integer("number of samples", count, 1, MOST_RESTORED)
            if level is not None:
                check_integer("level", level, 1)
            wanted = replace(wanted, level="auto" if level is None else str(level), samples=count, degrade=degrade)
        pipeline, read, own = await self.read(self.studio.degraded, str(picture), run)
        if wanted.photographs:
            return Stream(self.work(request, self.studio.photograph(pipeline, read, own, wanted, *given)))
        if degrade is not None:
            check_integer("level that it is degraded to", degrade, 1, pipeline.method.levels)
        return Stream(self.work(request, self.studio.restored(pipeline, read, own, wanted)))

    async def cancel(self, request: Request) -> Response:
        client, slot = request.query_params.get("client", ""), request.query_params.get("slot")
        return JSONResponse({"ended": self.turns.end(client, slot, "this was cancelled")})

    async def read(self, make: Callable[..., Any], *arguments: Any) -> Any:
        """What reads files, in a thread of its own."""
        return await asyncio.get_running_loop().run_in_executor(self.reader, partial(make, *arguments))

    def work(self, request: Request, things: Iterator[Any], slot: str | None = None, share: str | None = None) -> Work:
        """A work of whoever asks."""
        query, origin = request.query_params, request.client
        client = query.get("client") or (f"{origin.host}:{origin.port}" if origin else "")
        return self.turns.add(client, query.get("slot") or slot or request.url.path.rpartition("/")[2], things, share)

    async def filmed(
        self,
        request: Request,
        frames: Iterator[Any],
        count: int,
        seconds: float | None,
        arranged: Callable[[Iterator[np.ndarray]], Iterable[np.ndarray]],
        fps: int,
    ) -> Response:
        """A film of frames, or with progress=1 the messages of its making; ``arranged`` says which frame is shown how long."""
        work = self.work(request, frames, "film", FILMS)
        made = film(work, lambda frames: encoded_video(arranged(frames), fps), self.encoders, count, seconds)
        if request.query_params.get("progress"):
            return Stream(work, (message(*one) async for one in made))
        leaving = asyncio.create_task(left(request, work))
        try:
            [body] = [body async for _, body in made if body is not None]
        finally:
            leaving.cancel()
            work.end()
        return Response(body.tobytes(), media_type="video/mp4")


async def left(request: Request, work: Work) -> None:
    """End a work when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    work.end()


def number(query: Mapping[str, str], name: str, usual: Any, kind: Callable[[str], Any] | None = None) -> Any:
    """A number of the query, of the type of its usual value."""
    text = query.get(name, "")
    try:
        return (kind or type(usual))(text) if text else usual
    except ValueError:
        raise InputError(f"{name} must be a number, got {text[:40]!r}") from None


def ranged(query: Mapping[str, str], name: str, most: float) -> float | None:
    """A number of the query from 0 to the largest one; None if it is not there."""
    value = number(query, name, None, float)
    if value is not None:
        check_number(name.replace("_", " "), value, 0.0, most)
    return value


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
    check_choice("strokes_on", query.get("strokes_on", "rest"), ("rest", "turbulence"))
    strokes_on: Literal["rest", "turbulence"] = "turbulence" if query.get("strokes_on") == "turbulence" else "rest"
    brush = number(query, "brush", FlowOptions.brush)
    flow = FlowOptions("0.5", f"{sigma:g}L", turbulence, octaves, strokes, brush, strokes_on, time)
    return Corrupt(size=size, peclet=peclet, seed=seed, flow=flow)
