"""Play with the flow, the processes and the models in a browser, on this machine alone."""

from __future__ import annotations

import ctypes
import socket
import sys
import webbrowser
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from cli import console
from cli.explore.export import export
from lbm_warp.checks import InputError, check_integer

UNREAD = 60  # [s]


@dataclass(frozen=True)
class Explore:
    """Options of ``python -m cli.explore``."""

    port: int = 8765
    """Port to listen at; 0 takes a free one."""
    host: str = "127.0.0.1"
    """Address to listen at. By default only this machine can reach the page; 0.0.0.0 shows it to the whole network."""
    runs: Path = Path("runs")
    """Folder with run folders, whose models the page offers beside the bundled ones."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    browser: bool = False
    """Open the page in the browser."""
    export: Path | None = None
    """Write the live view to index.html in this folder and end. The page opens from its file or any web server; with ?embed in its
    address it fits into another page."""


def explore(options: Explore) -> None:
    """Compile the kernels, then serve the page until it is interrupted; or write the live view."""
    if options.export is not None:
        console.check_left_out(options, "is for the server, and --export starts none", "port", "host", "runs", "device")
        place = export(options.export)
        print(place)
        if options.browser:
            webbrowser.open(place.absolute().as_uri())
        return
    try:
        import uvicorn

        from cli.explore.server import application
    except ModuleNotFoundError as error:
        raise InputError(f"cli.explore needs {error.name}: pip install 'beyond-blur[explore]'") from None
    check_integer("--port", options.port, 0, 65535)
    app = application(console.pick_device(options.device), options.runs, local=options.host in ("127.0.0.1", "localhost"))
    try:
        listening = socket.create_server((options.host, options.port))
    except OSError as error:
        raise InputError(
            f"cannot listen at {options.host}:{options.port} ({error.strerror}); choose another --port or --host"
        ) from None
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # the system closes connections that nobody reads from
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * UNREAD)
    give_memory_back()
    app.state.studio.warm_up()
    address = f"http://{options.host}:{listening.getsockname()[1]}/"
    print(f"listening at {address} (Ctrl-C ends it)", flush=True)
    if options.browser:
        webbrowser.open(address)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])


def give_memory_back() -> None:
    """Let the C library of Linux give large pieces back to the system at once: it would keep them, and more for every thread."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(-8, 2)  # M_ARENA_MAX
        mallopt(-3, 2**24)  # M_MMAP_THRESHOLD [bytes]


main = partial(console.run, "explore", explore, partial(tyro.cli, Explore))


if __name__ == "__main__":
    main()
