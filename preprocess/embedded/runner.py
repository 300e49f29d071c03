"""LiteRT networks and a pool of workers that share the cores: items in, results out, in order. Knows no body.

`invoke` lets go of Python's lock, so single-threaded interpreters side by side use the cores at least as well
as one with several threads, and the numpy work around them runs in parallel too. An interpreter serves one
thread at a time: a worker owns a whole set of them and is lent out for one item.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Generic, TypeVar

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from ...wan.runtime.errors import ModelFilesBroken

Worker = TypeVar("Worker")
Item = TypeVar("Item")
Result = TypeVar("Result")

ITEMS_AHEAD = 2  # a worker: one in hand, one waiting; more only holds more frames in memory


class Network:
    """One .tflite file as a function of one picture. Serves one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Load and allocate. Raises ModelFilesBroken where LiteRT cannot use the file."""
        try:
            self._interpreter = Interpreter(model_path=str(path), num_threads=1)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ModelFilesBroken(
                f"{path} cannot be loaded ({error}): delete it and set up again"
            ) from error
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = [output["index"] for output in self._interpreter.get_output_details()]

    def __call__(self, picture: np.ndarray) -> list[np.ndarray]:
        """(S, S, 3) float32 → the outputs in the file's own order, without their batch axis."""
        self._interpreter.set_tensor(self._input, picture[None])
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index)[0] for index in self._outputs]


class WorkerPool(Generic[Worker]):
    """Interchangeable workers, each lent to one thread at a time."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._size = len(workers)
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in workers:
            self._idle.put(worker)

    def call(self, verb: Callable[[Worker, Item], Result], item: Item) -> Result:
        """Do one item in the calling thread, with the next idle worker."""
        worker = self._idle.get()
        try:
            return verb(worker, item)
        finally:
            self._idle.put(worker)

    def in_order(
        self, verb: Callable[[Worker, Item], Result], items: Iterable[Item]
    ) -> Generator[Result, None, None]:
        """Results in the items' order, computed a few items ahead.

        Close the iterator (`contextlib.closing`) when leaving early: it waits for what is in hand,
        drops what is waiting, and leaves no thread. An error in `verb` or in `items` comes out here.
        """
        pending: deque[Future[Result]] = deque()
        threads = ThreadPoolExecutor(self._size, thread_name_prefix="embedded")
        try:
            for item in items:
                pending.append(threads.submit(self.call, verb, item))
                if len(pending) > self._size * ITEMS_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
