"""The explorer's server in a thread of the tests, and what it sends."""

from __future__ import annotations

import base64
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import torch

if TYPE_CHECKING:
    from playwright.sync_api import Page


@contextmanager
def serving(runs: Path, app: Any = None) -> Iterator[str]:
    """The address of a server, of this application if it is made already; it ends with the block."""
    import uvicorn

    from cli.explore.server import application

    app = app or application(torch.device("cpu"), runs)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10.0)


def ask(address: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of an answer."""
    try:
        with urlopen(Request(address, data, {name.replace("_", "-"): value for name, value in headers.items()})) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


def add(address: str, data: bytes) -> tuple[int, dict[str, Any]]:
    """Add a picture; the status, and what the server says."""
    status, body = ask(f"{address}/api/pictures", data, content_type="application/octet-stream")
    return status, json.loads(body)


def messages(address: str, what: str, query: Mapping[str, object]) -> list[dict[str, Any]]:
    """The messages of a stream; each is its header, with the bytes as ``body``."""
    return list(streamed(address, what, query))


def streamed(address: str, what: str, query: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    """The messages of a stream as they come; who takes no more of them leaves."""
    with urlopen(f"{address}/api/{what}?{urlencode(query)}") as answer:
        while head := answer.read(4):
            header = json.loads(answer.read(*struct.unpack("<I", head)))
            yield header | {"body": answer.read(header["bytes"])}


def pictures(message: Mapping[str, Any], *shape: int) -> np.ndarray:
    """The pixels of a message, uint8 in this shape."""
    return np.frombuffer(message["body"][: int(np.prod(shape))], np.uint8).reshape(shape)


def array_of(page: Page, script: str, argument: object = None, kind: type = np.float32) -> np.ndarray:
    """The typed array that a script gives, flat. It comes as text: a list of so many numbers takes seconds to come."""
    text = page.evaluate(
        f"""argument => {{ const bytes = new Uint8Array(({script})(argument).buffer);
                          return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join('')); }}""",
        argument,
    )
    return np.frombuffer(base64.b64decode(text), kind)
