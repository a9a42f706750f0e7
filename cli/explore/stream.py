"""What the server sends piece by piece: messages of a JSON header and bytes, made one at a time and in turn."""

from __future__ import annotations

import json
import logging
import struct
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np

from lbm_warp.checks import InputError

log = logging.getLogger(__name__)
END = object()
FAILED = "this failed; the terminal of the server says why"


def message(header: dict[str, Any], body: np.ndarray | None = None) -> bytes:
    """The length of the header (uint32, little-endian), the header with the number of bytes that follow, the bytes."""
    data = b"" if body is None else np.ascontiguousarray(body).tobytes()
    text = json.dumps(header | {"bytes": len(data)}).encode()
    return struct.pack("<I", len(text)) + text + data


class Turns:
    """A lock that is given in the order in which it was asked for, so that nobody waits for ever.

    Attributes:
        asked: how often it was asked for.
        ended: how many turns have ended.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self.asked, self.ended = 0, 0

    def __enter__(self) -> None:
        with self._condition:
            own, self.asked = self.asked, self.asked + 1
            self._condition.wait_for(lambda: self.ended == own)

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self.ended += 1
            self._condition.notify_all()


def in_turns(messages: Iterator[bytes], turns: Turns) -> Iterator[bytes]:
    """The messages, each of them made in a turn of its own; an error becomes the last message."""
    while True:
        with turns:
            try:
                made = next(messages, None)
            except InputError as error:
                made, messages = message({"kind": "error", "text": str(error)}), iter(())
            except Exception:
                log.exception("the explorer failed")
                made, messages = message({"kind": "error", "text": FAILED}), iter(())
        if made is None:
            return
        yield made


class Gone(BaseException):
    """Nobody wants the rest any more."""


def steps(work: Callable[[Callable[[Any], None]], None]) -> Iterator[Any]:
    """What ``work(emit)`` emits, as an iterator: the work goes on only while the next thing is asked for.

    It runs in a thread of its own. If the iterator is closed early, ``emit`` raises :class:`Gone` there.
    """
    made: SimpleQueue = SimpleQueue()
    wanted: SimpleQueue = SimpleQueue()

    def emit(thing: Any) -> None:
        made.put((thing, None))
        if not wanted.get():
            raise Gone

    def run() -> None:
        try:
            if wanted.get():
                work(emit)
            made.put((END, None))
        except Gone:
            pass
        except BaseException as error:
            made.put((END, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            wanted.put(True)
            thing, error = made.get()
            if error is not None:
                raise error
            if thing is END:
                return
            yield thing
    finally:
        wanted.put(False)
