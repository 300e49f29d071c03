"""The worker runs one request at a time, in its own thread, and lets go of it when told."""

import asyncio
import threading

import pytest
from wan_animate.wan.runtime.errors import Cancelled
from wan_animate.wan.runtime.job import Job
from wan_animate.wan.runtime.worker import Worker


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.close()


def never() -> bool:
    return False


def count(steps: int, gate: threading.Event | None = None):
    def work(job: Job) -> int:
        with job.stage("people", total=steps) as stage:
            for _ in range(steps):
                if gate is not None:
                    gate.wait(5)
                stage.advance()
        return steps

    return work


async def test_result_and_updates_come_back(worker: Worker):
    running = worker.start(count(3), cancel_requested=never)
    updates = [progress async for progress in running.updates()]
    assert await running.result() == 3
    assert all(progress.stage == "people" for progress in updates)


async def test_an_error_reaches_the_caller(worker: Worker):
    def work(_: Job) -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await worker.start(work, cancel_requested=never).result()


async def test_two_requests_never_run_at_once(worker: Worker):
    active = []

    def work(_: Job) -> int:
        active.append(1)
        assert len(active) == 1
        threading.Event().wait(0.05)
        active.pop()
        return threading.get_ident()

    runs = [worker.start(work, cancel_requested=never) for _ in range(3)]
    threads = {await run.result() for run in runs}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


async def test_cancel_stops_running_and_waiting_requests(worker: Worker):
    gate = threading.Event()
    first, second = (worker.start(count(100, gate), cancel_requested=never) for _ in range(2))
    await asyncio.sleep(0.05)
    worker.cancel()
    gate.set()
    for running in (first, second):
        with pytest.raises(Cancelled):
            await running.result()
    assert await worker.start(count(1), cancel_requested=never).result() == 1


async def test_abandon_waits_until_the_work_has_let_go(worker: Worker):
    gone = threading.Event()

    def work(job: Job) -> None:
        try:
            with job.stage("pose") as stage:
                while True:
                    stage.advance()
        finally:
            threading.Event().wait(0.1)
            gone.set()

    running = worker.start(work, cancel_requested=never)
    await asyncio.sleep(0.05)
    await running.abandon()
    assert gone.is_set()


async def test_the_platforms_own_flag_is_polled(worker: Worker):
    flag = [False]
    running = worker.start(count(10**9), cancel_requested=lambda: flag[0])
    await asyncio.sleep(0.05)
    flag[0] = True
    with pytest.raises(Cancelled):
        await running.result()
