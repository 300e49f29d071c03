"""The one thread that does blocking work, and the bridge from it to an event loop.

An event loop must stay free while a clip is denoised: it hears cancellations and streams snapshots. So every
request runs in this thread, one after the other, and is watched from the loop.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from .errors import Cancelled
from .job import Job, Progress

T = TypeVar("T")

POLL_S = 0.02  # how often the loop looks at the thread; bounds the delay of a finished request
UPDATE_S = 1.0  # snapshots of one stage are this far apart; a new stage, and its first clip, are told at once


class Running(Generic[T]):
    """A request on its way through the worker thread."""

    def __init__(
        self, executor: ThreadPoolExecutor, work: Callable[[Job], T], asked: Callable[[], bool]
    ) -> None:
        self._stop = threading.Event()
        self._latest: Progress | None = None
        self.job = Job(cancel_requested=lambda: self._stop.is_set() or asked(), on_progress=self._remember)
        self._future: Future[T] = executor.submit(self._work, work)

    def cancel(self) -> None:
        """Ask it to stop; it does at its next tick. Safe from any thread, any number of times."""
        self._stop.set()

    async def updates(self) -> AsyncIterator[Progress]:
        """Progress at every new stage and about once a second, until the work is over."""
        told: Progress | None = None
        told_at = 0.0
        while not self._future.done():
            latest = self._latest
            if latest is not None and latest is not told:
                due = time.monotonic() - told_at >= UPDATE_S
                if told is None or _headline(latest) != _headline(told) or due:
                    told, told_at = latest, time.monotonic()
                    yield latest
            await asyncio.sleep(POLL_S)

    async def result(self) -> T:
        """What the work returned, or the error it raised."""
        while not self._future.done():
            await asyncio.sleep(POLL_S)
        return self._future.result()

    async def abandon(self) -> None:
        """Stop it and wait until it has let go of everything."""
        self.cancel()
        self._future.cancel()  # a request that still waits in the queue never starts
        while not self._future.done():
            await asyncio.sleep(POLL_S)

    def _remember(self, progress: Progress) -> None:
        self._latest = progress

    def _work(self, work: Callable[[Job], T]) -> T:
        if self._stop.is_set():
            raise Cancelled("the request was cancelled before it began")
        self.job.begin()
        return work(self.job)


def _headline(progress: Progress) -> tuple[str, bool]:
    return progress.stage, bool(progress.detail)


class Worker:
    """Runs requests one at a time, in one thread of its own."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wan-animate")
        self.running: set[Running] = set()  # under way or waiting

    def start(self, work: Callable[[Job], T], *, cancel_requested: Callable[[], bool]) -> Running[T]:
        """Queue `work`; it gets a Job of its own. `cancel_requested` is asked besides `Running.cancel`."""
        running = Running(self._executor, work, cancel_requested)
        self.running.add(running)
        running._future.add_done_callback(lambda _: self.running.discard(running))
        return running

    def cancel(self) -> None:
        """Ask every request, running or waiting, to stop."""
        for running in tuple(self.running):
            running.cancel()

    def close(self) -> None:
        """Stop everything and end the thread."""
        self.cancel()
        self._executor.shutdown(wait=True, cancel_futures=True)
