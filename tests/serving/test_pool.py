"""The queue before the workers: full, late, shared, retried; with threads for processes.

A thread cannot die as a process does: BrokenProcessPool is what concurrent.futures' own
ProcessPoolExecutor raises then, and tests/serving/test_service.py kills real workers.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client")

from uino_deploy.errors import BundleError
from uino_deploy.serving import pool as module
from uino_deploy.serving import worker
from uino_deploy.serving.messages import Query
from uino_deploy.serving.metrics import Metrics
from uino_deploy.serving.pool import MOST_TRIES, Pool
from uino_deploy.serving.refusals import Refused
from uino_deploy.serving.settings import Limits, Settings
from uino_deploy.serving.worker import Answer, EnrollJob, SegmentJob


class Workers:
    """What stands for the workers' code: it notes each batch, and fails when it is told to."""

    def __init__(self, monkeypatch, batch=4):
        self.begun, self.batches, self.deaths, self.loads = [], [], [], []
        self.batch, self.hold = batch, asyncio.Event
        self.open = None
        monkeypatch.setattr(module, "_end", lambda process: process.executor.shutdown(wait=False))
        monkeypatch.setattr(
            module, "ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count)
        )
        monkeypatch.setattr(worker, "start", self.start)
        monkeypatch.setattr(worker, "work", self.work)
        monkeypatch.setattr(module, "_FIRST_PAUSE", 0.01)

    def start(self, settings):
        if self.loads:
            raise self.loads.pop()
        return self.batch

    def work(self, jobs):
        self.begun.append(len(jobs))
        if self.open is not None:
            asyncio.run_coroutine_threadsafe(self.open.wait(), self.loop).result()
        names = [job.image if isinstance(job, SegmentJob) else job.name for job in jobs]
        self.batches.append(names)
        if set(names) & set(self.deaths):
            raise BrokenProcessPool("it died")
        return [Answer(200, str(name).encode(), {"encode": 0.0}, len(jobs)) for name in names]

    def close(self):
        """Hold all work until `open` is set."""
        self.loop, self.open = asyncio.get_running_loop(), asyncio.Event()


@pytest.fixture
def workers(monkeypatch):
    return Workers(monkeypatch)


def make(workers, **limits):
    failures = []
    settings = Settings(Path("b"), Path("c"), lambda path: None, limits=Limits(**limits))
    pool = Pool(settings, Metrics(), failures.append)
    pool.failures = failures
    return pool


def image(name):
    return SegmentJob(name, Query(classes="a"))


async def until(holds):
    """Wait until something holds, however slow the machine is."""
    while not holds():
        await asyncio.sleep(0.01)


async def asked(pool, *jobs, seconds=10):
    end = asyncio.get_running_loop().time() + seconds
    return await asyncio.gather(*(pool.ask(job, end) for job in jobs), return_exceptions=True)


def test_images_that_wait_together_share_a_batch_and_an_enrolment_is_alone(workers):
    async def go():
        pool = make(workers)
        jobs = [image(1), image(2), EnrollJob("x", (), ()), image(3)]
        jobs += [image(n) for n in range(4, 9)]
        asking = asyncio.ensure_future(asked(pool, *jobs))
        await asyncio.sleep(0)  # all wait before the worker is there
        async with pool.run():
            return await asking

    answers = asyncio.run(go())
    assert workers.batches == [[1, 2], ["x"], [3, 4, 5, 6], [7, 8]]
    assert [each.body for each in answers] == [b"1", b"2", b"x", *(b"%d" % n for n in range(3, 9))]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(workers):
    async def go():
        pool = make(workers, queue=3)
        workers.close()
        async with pool.run():
            first = asyncio.ensure_future(asked(pool, *map(image, range(3))))
            await until(lambda: workers.begun)
            waiting = asyncio.ensure_future(asked(pool, *map(image, range(10, 13))))
            await until(lambda: len(pool._queue) == 3)
            (refused,) = await asyncio.wait_for(asked(pool, image(99)), 1)
            workers.open.set()
            return await first, await waiting, refused

    first, waiting, refused = asyncio.run(go())
    assert isinstance(refused, Refused)
    assert refused.status == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert "wait already" in refused.why
    assert all(isinstance(each, Answer) for each in waiting)
    assert all(isinstance(each, Answer) for each in first)


def test_a_request_is_answered_at_its_deadline_and_its_work_is_dropped(workers):
    async def go():
        pool = make(workers)
        workers.close()
        async with pool.run():
            running = asyncio.ensure_future(asked(pool, image(1)))
            await until(lambda: workers.begun)
            (late,) = await asked(pool, image(2), seconds=0.1)
            workers.open.set()
            await running
            await asked(pool, image(3))
            return late

    late = asyncio.run(go())
    assert (late.status, late.headers) == (504, {"Retry-After": "1"})
    assert workers.batches == [[1], [3]], "the second was never begun"


def test_a_worker_that_takes_too_long_is_replaced(workers):
    async def go():
        pool = make(workers, deadline=0.2)
        workers.close()
        async with pool.run():
            (late,) = await asked(pool, image(1), seconds=0.2)
            await asyncio.sleep(0.2)
            workers.open.set()
            return late, await asked(pool, image(2), seconds=2)

    late, (done,) = asyncio.run(go())
    assert late.status == 504
    assert done.body == b"2"


def test_what_a_dead_worker_was_doing_is_done_and_what_kills_is_given_up(workers):
    async def go():
        pool = make(workers)
        workers.deaths = [2]
        asking = asyncio.ensure_future(asked(pool, *map(image, (1, 2, 3))))
        await asyncio.sleep(0)
        async with pool.run():
            return await asking, pool.metrics.text().decode()

    (one, two, three), figures = asyncio.run(go())
    assert (one.body, three.body) == (b"1", b"3")
    assert two.status == 500
    assert f"{MOST_TRIES} workers died" in two.why
    # Together once, then one by one, so that the others do not die with it.
    assert workers.batches == [[1, 2, 3], [1], [2], [2], [3]]
    assert f"uino_workers_replaced_total {MOST_TRIES}.0" in figures


def test_a_bundle_that_cannot_be_loaded_is_told_and_a_crash_while_loading_is_tried_again(workers):
    async def go(error):
        pool = make(workers)
        workers.loads = [error]
        async with pool.run():
            await until(lambda: pool.failures or pool.ready)
            return pool.failures, pool.ready

    damaged = BundleError("b is damaged")
    assert asyncio.run(go(damaged)) == ([damaged], 0)
    assert asyncio.run(go(BrokenProcessPool("it died"))) == ([], 1)
