"""Workers in processes of their own, and the one queue before them.

A worker that dies is replaced, and what it was doing is done by its successor. A request that
finds the queue full is refused at once; one whose deadline passes is answered then, whatever became
of it.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from uino_deploy.errors import UinoDeployError
from uino_deploy.serving import worker
from uino_deploy.serving.metrics import Metrics
from uino_deploy.serving.refusals import Refused
from uino_deploy.serving.settings import Settings
from uino_deploy.serving.worker import Answer, Job, SegmentJob

MOST_TRIES = 3
"""Workers that may die over a request before it is given up."""

# Seconds before a worker that died while it loaded is started again: doubled each time.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
# Seconds between two looks at a worker that has nothing to do.
_LOOK_EVERY = 1.0
# Share of the newest job in the running mean of their seconds.
_NEW = 0.2


@dataclass(eq=False)
class _Waiting:
    job: Job
    answer: asyncio.Future[Answer]
    since: float
    tries: int = 0


@dataclass(eq=False)
class _Process:
    """A worker's process; its number is known once it runs, its batch once it is loaded."""

    executor: Executor
    number: int = 0
    batch: int = 0


@dataclass
class Pool:
    """The workers of a service; `run` keeps them alive.

    Attributes:
        settings: what they load.
        metrics: receives what they do.
        failed: called with the error where a worker cannot load the bundle.
        ready: workers that are loaded.
    """

    settings: Settings
    metrics: Metrics
    failed: Callable[[Exception], None]
    ready: int = 0
    _queue: deque[_Waiting] = field(default_factory=deque)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _mean: float = 0.05

    def refuse_if_full(self) -> None:
        """Refuse a request that would have to wait behind too many others.

        Raises:
            Refused: the queue is full.
        """
        count = sum(not each.answer.done() for each in self._queue)
        self.metrics.waiting.set(count)
        if count >= self.settings.limits.queue:
            seconds = math.ceil(count * self._mean / max(1, self.ready))
            raise Refused(
                503,
                f"{count} requests wait already; try again in {seconds} s",
                {"Retry-After": str(seconds)},
            )

    async def ask(self, job: Job, until: float) -> Answer:
        """Have a job done.

        Args:
            job: an image or a class.
            until: the loop's time at which the answer must be there.

        Raises:
            Refused: the queue is full, the deadline has passed, or what the worker refused.
        """
        self.refuse_if_full()
        loop = asyncio.get_running_loop()
        waiting = _Waiting(job, loop.create_future(), loop.time())
        self._queue.append(waiting)
        self._arrived.set()
        try:
            return await asyncio.wait_for(waiting.answer, until - loop.time())
        except (TimeoutError, asyncio.TimeoutError) as error:
            why = f"not done within {self.settings.limits.deadline:g} s, the deadline of a request"
            raise Refused(504, why, {"Retry-After": "1"}) from error

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Run the workers while the block runs; whoever ends it has let the requests finish."""
        slots = [asyncio.create_task(self._slot()) for _ in range(self.settings.workers)]
        try:
            yield
        finally:
            for slot in slots:
                slot.cancel()
            await asyncio.gather(*slots, return_exceptions=True)

    async def _slot(self) -> None:
        """Keep one worker alive."""
        pause = _FIRST_PAUSE
        while True:
            process = _Process(
                ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            )
            try:
                await self._load(process)
                pause = _FIRST_PAUSE
                await self._serve(process)
            except BrokenProcessPool:
                self.metrics.replaced.inc()
            except (UinoDeployError, OSError, MemoryError) as error:
                self.failed(error)
                return
            finally:
                _end(process)
            if not process.batch:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _load(self, process: _Process) -> None:
        loop = asyncio.get_running_loop()
        process.number = await loop.run_in_executor(process.executor, os.getpid)
        process.batch = await loop.run_in_executor(process.executor, worker.start, self.settings)

    async def _serve(self, process: _Process) -> None:
        """Give a loaded worker what waits; while nothing does, see that it lives."""
        self.ready += 1
        self.metrics.ready.set(self.ready)
        try:
            while True:
                if taken := self._take(process.batch):
                    await self._work(process, taken)
                    continue
                self._arrived.clear()
                try:
                    await asyncio.wait_for(self._arrived.wait(), _LOOK_EVERY)
                except (TimeoutError, asyncio.TimeoutError):
                    await asyncio.get_running_loop().run_in_executor(process.executor, os.getpid)
        finally:
            self.ready -= 1
            self.metrics.ready.set(self.ready)

    def _take(self, batch: int) -> list[_Waiting]:
        """Take the next job, and with an image others that wait; a job that is retried is alone."""
        taken: list[_Waiting] = []
        while self._queue and len(taken) < batch:
            first = self._queue[0]
            alone = first.tries > 0 or not isinstance(first.job, SegmentJob)
            if alone and taken:
                break
            self._queue.popleft()
            if not first.answer.done():  # else its deadline has passed
                taken.append(first)
                if alone:
                    break
        return taken

    async def _work(self, process: _Process, taken: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            run = loop.run_in_executor(process.executor, worker.work, [each.job for each in taken])
            # Whoever waits for it is answered by then.
            answers = await asyncio.wait_for(run, self.settings.limits.deadline)
        except BrokenProcessPool:
            self._again(taken)
            raise
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise BrokenProcessPool("a job took longer than its deadline") from error
        self._mean += _NEW * ((loop.time() - start) / len(taken) - self._mean)
        for each, answer in zip(taken, answers, strict=True):
            if each.answer.done():
                continue
            if isinstance(answer, Refused):
                each.answer.set_exception(answer)
            else:
                self.metrics.observe(answer, start - each.since)
                each.answer.set_result(answer)

    def _again(self, taken: list[_Waiting]) -> None:
        """Put jobs whose worker died at the head of the queue, unless too many died of them."""
        for each in reversed(taken):
            each.tries += 1
            if each.answer.done():
                continue
            if each.tries < MOST_TRIES:
                self._queue.appendleft(each)
            else:
                why = f"{MOST_TRIES} workers died over this request"
                each.answer.set_exception(Refused(500, why))
        self._arrived.set()


def _end(process: _Process) -> None:
    """End a worker at once: it has nothing to do, or does what nobody waits for."""
    process.executor.shutdown(wait=False, cancel_futures=True)
    if process.number:
        with suppress(ProcessLookupError):
            os.kill(process.number, getattr(signal, "SIGKILL", signal.SIGTERM))
