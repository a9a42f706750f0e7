"""What the server sends piece by piece, and the turns in which it is made.

A work is an iterator for one reader. What it gives is a message, ``PAUSE`` where a turn may end, or ``REST`` where it ends. One
thread makes all works, a turn at a time: the clients stand in a circle, and so do the works of one client. A work whose reader has
not taken what is made has no turn, so a slow reader costs a few messages of memory and no time. The state of the circle is the
event loop's alone.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import struct
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np

from lbm_warp.checks import InputError

log = logging.getLogger(__name__)
PAUSE, REST, END = object(), object(), object()
FAILED = "this failed; the terminal of the server says why"
# A turn takes this long and the piece that is under way then [s]; pieces are made to take about as long.
TURN = 0.05
AHEAD = 2  # things made and not read, of one work
MOST = 128  # works at a time
STALLED = 3.0  # after which a work that is not read makes room for others [s]
PROGRESS = 0.25  # between two messages of a film [s]
TIDY = 5.0  # between two times that memory is given back [s]


class Busy(Exception):
    """There are too many works."""


class Ended(Exception):
    """A work was ended, in words why."""


class Gone(BaseException):
    """Nobody wants the rest any more."""


def message(header: dict[str, Any], body: np.ndarray | None = None) -> bytes:
    """The length of the header (uint32, little-endian), the header with the number of bytes that follow, the bytes."""
    data = b"" if body is None else np.ascontiguousarray(body).tobytes()
    text = json.dumps(header | {"bytes": len(data)}).encode()
    return struct.pack("<I", len(text)) + text + data


class Work:
    """What an iterator gives, made in turns, for one reader.

    Args:
        turns: which it takes part in.
        owner: the client, and what the work is for.
        share: whose place in the circle it has.
        things: what it gives, and pauses.

    Attributes:
        since: when it was made or read last [s].
        error: why there is no more of it, if it has not come to its end.
    """

    def __init__(self, turns: Turns, owner: tuple[str, str], share: str, things: Iterator[Any]) -> None:
        self.turns, self.owner, self.share = turns, owner, share
        self.since = time.monotonic()
        self._things, self._made = things, deque[Any]()
        self.error: BaseException | None = None
        self._made_one = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether it may have a turn: all that is made is read."""
        return not self._made and self.error is None

    def turn(self) -> None:
        """Make some things, in the thread of the turns."""
        end, thing = time.perf_counter() + TURN, None
        try:
            while self.error is None and thing is not END:
                thing = next(self._things, END)
                if thing is not PAUSE and thing is not REST:
                    self._made.append(thing)
                if thing is REST or len(self._made) >= AHEAD or time.perf_counter() >= end:
                    return
        except BaseException as error:
            self.error = self.error or error

    def tell(self) -> None:
        """Wake the reader, after a turn."""
        self.since = time.monotonic()
        if self._made or self.error is not None:
            self._made_one.set()

    async def next(self) -> Any:
        """The next thing, or END.

        Raises:
            Ended: if the work was ended; and whatever its iterator raises.
        """
        while not self._made or isinstance(self.error, Ended):
            if self.error is not None:
                raise self.error
            self._made_one.clear()
            self.turns.go_on()
            await self._made_one.wait()
        self.since = time.monotonic()
        if (thing := self._made.popleft()) is END:
            self._made.append(END)
        return thing

    def end(self, why: str = "nobody wants the rest") -> None:
        """Make no more of it, and forget it."""
        self.turns.forget(self)
        if self.error is None:
            self.error = Ended(why)
        self._made_one.set()

    def __aiter__(self) -> Work:
        return self

    async def __anext__(self) -> Any:
        if (thing := await self.next()) is END:
            raise StopAsyncIteration
        return thing

    def close(self) -> None:
        """End the iterator, in the thread of the turns, and give back the memory that it leaves."""
        if close := getattr(self._things, "close", None):
            close()
        self._things = iter(())
        self.turns.give_back()


class Turns:
    """The circle of clients, and the thread that makes their works.

    Attributes:
        count: how many turns there were.
        longest: processor time of the longest one [s].
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "turns")
        self._circle: OrderedDict[str, deque[Work]] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self.count, self.longest = 0, 0.0
        self._tidied = 0.0

    def give_back(self) -> None:
        """Give free memory back to the system, now and then: the C library of Linux keeps it for every thread that there was."""
        if sys.platform == "linux" and time.monotonic() - self._tidied > TIDY:
            if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
                trim(0)
            self._tidied = time.monotonic()

    @property
    def works(self) -> list[Work]:
        """All works that have not ended."""
        return [work for works in self._circle.values() for work in works]

    def add(self, client: str, slot: str, things: Iterator[Any], share: str | None = None) -> Work:
        """A new work. It ends the one that its client has in the same slot.

        Args:
            client, slot: who wants it, and what for.
            things: what it gives, and pauses.
            share: whose place in the circle it has; by default the client's.

        Raises:
            Busy: if there are too many, and all are read.
        """
        self.end(client, slot, "something newer was asked for")
        if len(self.works) >= MOST:
            idle = [work for work in self.works if not work.ready and time.monotonic() - work.since > STALLED]
            if not idle:
                raise Busy(f"{MOST} pages are being served; try again in a moment")
            min(idle, key=lambda work: work.since).end("it was not read for so long that others took its place")
        work = Work(self, (client, slot), share or client, things)
        self._circle.setdefault(work.share, deque()).append(work)
        self.go_on()
        return work

    def end(self, client: str, slot: str | None, why: str) -> int:
        """End what a client has in a slot, or in all of them; returns how many works that were."""
        ended = [work for work in self.works if work.owner[0] == client and slot in (None, work.owner[1])]
        for work in ended:
            work.end(why)
        return len(ended)

    def forget(self, work: Work) -> None:
        """Take a work out of the circle."""
        works = self._circle.get(work.share, deque())
        if work in works:
            works.remove(work)
            if not works:
                del self._circle[work.share]
            self._thread.submit(work.close)

    def go_on(self) -> None:
        """Make what is wanted, if that is not under way."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while (work := self._next()) is not None:
                used = await asyncio.get_running_loop().run_in_executor(self._thread, _timed, work.turn)
                self._thread.submit(self.give_back)
                self.count, self.longest = self.count + 1, max(self.longest, used)
                work.tell()
        finally:
            self._task = None
            asyncio.get_running_loop().call_later(1.1 * TIDY, self._thread.submit, self.give_back)  # what the last turns left

    def _next(self) -> Work | None:
        """The first of the circle that is ready; it goes to the end of the circle."""
        for share, works in self._circle.items():
            for work in works:
                if work.ready:
                    works.remove(work)
                    works.append(work)
                    self._circle.move_to_end(share)
                    return work
        return None


def _timed(work: Callable[[], None]) -> float:
    """Do it; the processor time that it took [s]."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


async def told(messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The messages; if something goes wrong, the last one says what. Errors that are not a visitor's go to the terminal."""
    try:
        async for one in messages:
            yield one
    except (InputError, Ended) as error:
        yield message({"kind": "cancelled" if isinstance(error, Ended) else "error", "text": str(error)})
    except Exception:
        log.exception("the explorer failed")
        yield message({"kind": "error", "text": FAILED})


async def film(
    work: Work, encoded: Callable[[Iterator[np.ndarray]], bytes], encoders: ThreadPoolExecutor, count: int, seconds: float | None
) -> AsyncIterator[tuple[dict[str, Any], np.ndarray | None]]:
    """How far a film is, again and again, and at last the film: a header and the bytes of each message.

    Args:
        work: gives the frames, uint8 [H, W, 3].
        encoded: makes a film of them, in a thread of ``encoders``: it is the reader of the work.
        count: how many frames.
        seconds: what all of it takes, about.
    """
    loop, done, text = asyncio.get_running_loop(), 0, "waiting for other films"

    def frames() -> Iterator[np.ndarray]:
        nonlocal done, text
        while (frame := asyncio.run_coroutine_threadsafe(work.next(), loop).result()) is not END:
            done += 1
            text = f"frame {done} of {count}"
            yield frame
        text = "encoding"

    encoding = loop.run_in_executor(encoders, lambda: encoded(frames()))
    try:
        while not (await asyncio.wait({encoding}, timeout=PROGRESS))[0]:
            if isinstance(work.error, Ended):
                raise work.error
            yield {"kind": "progress", "text": text, "done": done, "of": count, "seconds": seconds}, None
        yield {"kind": "film"}, np.frombuffer(encoding.result(), np.uint8)
    finally:
        work.end()
        if not encoding.cancel():  # it fails, as its frames have ended; nobody asks why
            encoding.add_done_callback(lambda ended: ended.exception())


_here = threading.local()
# Whose network is in the middle of its work: its activations are large, and two are not kept at a time.
_inside: list[Callable[[Any], None]] = []


def pause(*_: object) -> None:
    """Let others have a turn, if this is within a work of :func:`steps` and has lasted long enough; a forward hook of modules."""
    if (emit := getattr(_here, "emit", None)) and time.perf_counter() - _here.since > TURN:
        emit(PAUSE)


def enter(*_: object) -> None:
    """Wait, if this is within a work of :func:`steps`, until no other is inside a network; a hook before a network's forward."""
    if emit := getattr(_here, "emit", None):
        while _inside and emit not in _inside:
            emit(REST)
        _inside[:] = [emit]


def leave(*_: object) -> None:
    """The hook after it."""
    _inside.clear()


def steps(work: Callable[[Callable[[Any], None]], object]) -> Iterator[Any]:
    """What ``work(emit)`` emits, as an iterator: the work goes on only while the next thing is asked for. After a thing its turn
    ends, so that it is not inside a network while its reader is waited for.

    It runs in a thread of its own. If the iterator is closed early, ``emit`` raises :class:`Gone` there.
    """
    made: SimpleQueue = SimpleQueue()
    wanted: SimpleQueue = SimpleQueue()

    def go_on() -> None:
        if not wanted.get():
            raise Gone
        _here.since = time.perf_counter()

    def emit(thing: Any) -> None:
        made.put((thing, None))
        go_on()

    def run() -> None:
        _here.emit = emit
        try:
            go_on()
            work(emit)
            made.put((END, None))
        except Gone:
            pass
        except BaseException as error:
            made.put((END, error))
        finally:
            if emit in _inside:
                leave()

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
            if thing is not PAUSE and thing is not REST:
                yield REST
    finally:
        wanted.put(False)
