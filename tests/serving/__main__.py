"""`make serve-check`: clients that overload, drip and lie, and workers that are killed meanwhile.

Run it on the demo's output: python -m tests.serving build/demo -o build/serving.json
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import random
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tests.serving.client import form
from tests.serving.conftest import Service, served
from tests.serving.load import Asker, Tally, load
from uino_deploy.images import load_image, load_mask
from uino_deploy.images.coco_file import runs_of_mask
from uino_deploy.runtime import Predictor

CLIENTS, WORKERS = 64, 2
# Workers that are killed at least, unless that takes longer than so many seconds.
KILLS, LONGEST = 5, 300
# Answers between two kills.
LEAST_BETWEEN = 10
SIZE = (640, 480)


class Material:
    """Pictures of the demo, as a camera gives them, and what the predictor finds in them."""

    def __init__(self, demo: Path) -> None:
        names = sorted(path.stem for path in (demo / "supports").iterdir())[:8]
        self.shots = [
            (load_image(demo / f"shots/{name}.png"), load_mask(demo / f"shots/{name}_mask.png"))
            for name in names
        ]
        self.jpegs = [_jpeg(image) for image, _ in self.shots]
        self.pngs = [(_png(image), _png(mask * np.uint8(255))) for image, mask in self.shots]
        self.predictor = Predictor.load(demo / "demo.uino", threads=1)
        supports = [self.predictor.enroll([shot], f"s{n}") for n, shot in enumerate(self.shots)]
        images = [np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in self.jpegs]
        # Runs of each image (row) and class (column).
        self.expected = [
            [runs_of_mask(each.mask) for each in self.predictor.predict(image, supports)]
            for image in images
        ]

    def in_process(self, count: int = 40) -> dict[str, float]:
        """Return the milliseconds of a predictor that reads the JPEG itself."""
        support = self.predictor.enroll([self.shots[0]], "s0")
        spent, cpu = [], time.process_time()
        for turn in range(count):
            start = time.perf_counter()
            jpeg = self.jpegs[turn % len(self.jpegs)]
            image = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
            runs_of_mask(self.predictor.predict(image, support).mask)
            spent.append(time.perf_counter() - start)
        return {
            "p50": round(1000 * float(np.median(spent)), 1),
            "cpu_ms": round(1000 * (time.process_time() - cpu) / count, 1),
        }


def main() -> None:
    """Run the checks; leave with 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    material = Material(given.demo)
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}",
        "load_average_before": [round(each, 1) for each in os.getloadavg()],
        "image": f"JPEG {SIZE[0]}x{SIZE[1]}, answers as run lengths, one class",
        "in_process": material.in_process(),
        "clients": {},
    }
    bundle = given.demo / "demo.uino"
    with tempfile.TemporaryDirectory() as folder:
        options = ("--threads", "1", "--queue", "128", "--deadline", "120")
        with served(bundle, Path(folder) / "a", *options) as service:
            service.wait_until_ready()
            enroll_all(service, material)
            for clients in (1, 8, 64):
                report["clients"][clients] = asyncio.run(steady(service, material, clients, given))
            report["slow_clients"] = asyncio.run(slow(service, material, given))
        with served(bundle, Path(folder) / "b", "--threads", "1", "--queue", "8") as service:
            service.wait_until_ready()
            enroll_all(service, material)
            report["overload"] = asyncio.run(overload(service, material, given))
        with served(bundle, Path(folder) / "c", *options, "--workers", str(WORKERS)) as service:
            service.wait_until_ready()
            enroll_all(service, material)
            report["killed_workers"] = asyncio.run(killed(service, material, 2 * given.seconds))
    report["load_average_after"] = [round(each, 1) for each in os.getloadavg()]
    report["failures"] = failures(report)
    text = json.dumps(report, indent=2)
    print(text)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text + "\n", "utf-8")
    raise SystemExit(1 if report["failures"] else 0)


def failures(report: dict) -> list[str]:
    """Return what must hold and does not."""
    found = []
    overloaded, killed_ = report["overload"], report["killed_workers"]
    loads = {
        **{f"{count} clients": each for count, each in report["clients"].items()},
        **{name: report[name] for name in ("slow_clients", "overload", "killed_workers")},
    }
    idle = [name for name, each in loads.items() if not each["answered"]]
    if idle or not overloaded["share_of_peak"]:
        found.append(f"NOT RUN, nothing was answered: {', '.join(idle) or 'before the overload'}")
    wrong = [each["wrong"] for each in loads.values()]
    if any(wrong):
        found.append(f"wrong or lost answers: {wrong}")
    if overloaded["refused"] == 0:
        found.append("nothing was refused at overload")
    if killed_["kills"] < KILLS or killed_["replaced"] < killed_["kills"]:
        found.append(f"{killed_['replaced']} of {killed_['kills']} killed workers were replaced")
    if killed_["orphans"]:
        found.append("workers outlived a service that was killed")
    if report["slow_clients"]["still_open"]:
        found.append("a connection without a request stayed open")
    return found


def enroll_all(service: Service, material: Material) -> None:
    """Enroll the shots as s0, s1, ..."""
    client = service.client()
    for number, (image, mask) in enumerate(material.pngs):
        assert client.enroll(f"s{number}", ("image", image), ("mask", mask)).status == 201


async def steady(service: Service, material: Material, clients: int, given: object) -> dict:
    """Segment as fast as the service answers."""
    before = cpu_seconds(service)
    tally = await load(service.address, clients, given.seconds, *segmenting(material))
    spent = {
        name: round(1000 * (seconds - before[name]) / max(1, tally.count(200)), 1)
        for name, seconds in cpu_seconds(service).items()
    }
    return {**described(tally), "cpu_ms_an_answer": spent}


def cpu_seconds(service: Service) -> dict[str, float]:
    """Return the processor time of the service's own process, and of its workers."""

    def seconds(number: int) -> float:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    return {
        "service": seconds(service.process.pid),
        "workers": sum(map(seconds, service.workers())),
    }


async def overload(service: Service, material: Material, given: object) -> dict:
    """Ask with more clients than the queue holds, beside as many as it holds."""
    calm = await load(service.address, 8, given.seconds, *segmenting(material))
    tally = await load(
        service.address, CLIENTS, given.seconds, *segmenting(material, (200, 503)), pause=0.05
    )
    return {
        **described(tally),
        "refused": tally.count(503),
        "refused_ms": tally.quantiles(503),
        "share_of_peak": round(tally.rate / calm.rate, 3) if calm.rate else 0.0,
    }


async def killed(service: Service, material: Material, seconds: float) -> dict:
    """Enroll and segment while one worker is killed, or all, after every few answers."""
    segment, check = segmenting(material)
    kills, tally = 0, Tally()

    def request(client: int, turn: int) -> tuple[str, str, bytes, str]:
        if client % 4 or turn % 5:
            return segment(client, turn)
        image, mask = material.pngs[client % len(material.pngs)]
        kind, body = form([("image", image), ("mask", mask)])
        return "PUT", f"/v1/classes/s{client % len(material.pngs)}", body, kind

    def checked(client: int, turn: int, reply: object) -> str:
        if client % 4 or turn % 5:
            return check(client, turn, reply)
        return "" if reply.status in {200, 201} else f"{reply.status} {reply.body[:200]!r}"

    async def kill() -> None:
        nonlocal kills
        answered = 0
        while time.monotonic() < start + seconds or longer():
            await asyncio.sleep(random.uniform(0.5, 2))
            # Killed faster than they load, no worker would ever work.
            if tally.count(200) < answered + LEAST_BETWEEN:
                continue
            answered = tally.count(200)
            for number in service.workers()[: 2 if kills % 5 == 4 else 1]:
                os.kill(number, signal.SIGKILL)
                kills += 1

    def longer() -> bool:
        return kills < KILLS and time.monotonic() < start + LONGEST

    start = time.monotonic()
    killing = asyncio.create_task(kill())
    await load(service.address, CLIENTS, seconds, request, checked, tally=tally, longer=longer)
    await killing
    await asyncio.sleep(2)  # the last death is noticed within a second
    replaced = int(await figure(service, "uino_workers_replaced_total"))
    workers = service.workers()
    assert workers, "NOT RUN: no worker is left to end with its service"
    service.process.kill()
    await asyncio.sleep(5)
    return {
        **described(tally),
        "kills": kills,
        "replaced": replaced,
        "orphans": sum(Path(f"/proc/{number}").exists() for number in workers),
    }


async def figure(service: Service, name: str) -> float:
    """Return a metric without labels."""
    asker = Asker(service.address)
    figures = (await asker.ask("GET", "/metrics")).body.decode()
    asker.close()
    return float(next(line for line in figures.splitlines() if line.startswith(name)).split()[1])


async def slow(service: Service, material: Material, given: object) -> dict:
    """Segment beside connections whose heads drip and whose bodies end half-way."""
    host, _, port = service.address.rpartition(":")
    heads = (
        b"POST /v1/segment?classes=s0 HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"POST /v1/segment?classes=s0 HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        b"Content-Length: 100000\r\n\r\n",
    )
    streams = [await asyncio.open_connection(host, int(port)) for _ in range(100)]
    for number, (_, writer) in enumerate(streams):
        writer.write(heads[number % 2])

    async def drip() -> None:
        while True:
            await asyncio.sleep(0.5)
            for _, writer in streams:
                if not writer.is_closing():
                    writer.write(b"x")

    dripping = asyncio.create_task(drip())
    tally = await load(service.address, 8, max(12, given.seconds), *segmenting(material))
    # Half the heads are never finished: those are closed; the bodies still have their deadline.
    open_heads = sum(not reader.at_eof() and not reader.exception() for reader, _ in streams[::2])
    dripping.cancel()
    for _, writer in streams:
        writer.close()
    return {**described(tally), "slow": 100, "still_open": open_heads}


def segmenting(material: Material, allowed: tuple[int, ...] = (200,)) -> tuple:
    """Return requests for an image and a class, and the check of their masks."""

    def pair(client: int, turn: int) -> tuple[int, int]:
        count = len(material.jpegs)
        return (client + turn) % count, (client + turn // count) % count

    def request(client: int, turn: int) -> tuple[str, str, bytes, str]:
        image, name = pair(client, turn)
        return "POST", f"/v1/segment?classes=s{name}", material.jpegs[image], "image/jpeg"

    def check(client: int, turn: int, reply: object) -> str:
        image, name = pair(client, turn)
        if reply.status not in allowed:
            return f"{reply.status} {reply.body[:200]!r}"
        if reply.status == 200:
            runs = reply.json["classes"][0]["rle"]["counts"]
            if runs != material.expected[image][name]:
                return f"another mask of image {image}, class s{name}"
        return ""

    return request, check


def described(tally: Tally) -> dict:
    """Return a tally's figures."""
    return {
        "answered_a_second": round(tally.rate, 1),
        "ms": tally.quantiles(200),
        "answered": tally.count(200),
        "wrong": tally.wrong[:5],
    }


def _jpeg(image: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(image).resize(SIZE).save(written, "JPEG", quality=90)
    return written.getvalue()


def _png(array: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(array).save(written, "PNG")
    return written.getvalue()


if __name__ == "__main__":
    main()
