"""Learners side by side, one thread each, over shared weights.

Two threads inside one client waste half a pair of cores on small matrices; two clients with a thread each do not. So
every operation runs on one thread, and as many jobs run at once as there are learners. Results of a job do not depend
on which learner took it, so the number of workers changes no bit.
"""

import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from fedgen.learner import Learner

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """A fixed set of learners that take jobs."""

    def __init__(self, learners: Sequence[Learner]) -> None:
        assert learners, "there must be a learner"
        self._free: queue.SimpleQueue[Learner] = queue.SimpleQueue()
        for learner in learners:
            self._free.put(learner)
        self._num_learners = len(learners)
        self._threads = ThreadPoolExecutor(len(learners), thread_name_prefix="worker")

    def map(self, job: Callable[[Learner, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results as they are ready, in no particular order.

        Items are drawn one at a time when a learner is free, so no more of them exist than there are learners.

        Raises:
            Exception: whatever the first failing job raised; jobs not yet begun are dropped.
        """
        remaining = iter(items)
        running: set[Future[Result]] = set()
        try:
            while True:
                while len(running) < self._num_learners:
                    try:
                        item = next(remaining)
                    except StopIteration:
                        break
                    running.add(self._threads.submit(self._with_learner, job, item))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()

    def borrow(self, job: Callable[[Learner], Result]) -> Result:
        """The result of one job."""
        return self._with_learner(lambda learner, _: job(learner), None)

    def close(self) -> None:
        """Takes no more jobs; does not wait for those that run."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _with_learner(self, job: Callable[[Learner, Item], Result], item: Item) -> Result:
        learner = self._free.get()
        try:
            return job(learner, item)
        finally:
            self._free.put(learner)
