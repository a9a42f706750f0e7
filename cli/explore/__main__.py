"""Play with the flow, the processes and the models in a browser, on this machine alone."""

from __future__ import annotations

import socket
import webbrowser
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from cli import console
from lbm_warp.checks import InputError, check_integer


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


def explore(options: Explore) -> None:
    """Compile the kernels, then serve the page until it is interrupted."""
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
    app.state.studio.warm_up()
    address = f"http://{options.host}:{listening.getsockname()[1]}/"
    print(f"listening at {address} (Ctrl-C ends it)", flush=True)
    if options.browser:
        webbrowser.open(address)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])


main = partial(console.run, "explore", explore, partial(tyro.cli, Explore))


if __name__ == "__main__":
    main()
