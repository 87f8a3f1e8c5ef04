"""The first minutes on a GPU: the most telling steps first, each isolated, every result kept.

    python3 first_light.py --out OUT                        # on the card, under 10 minutes
    python3 first_light.py --rehearse --out rehearsal       # anywhere: all but the card

Steps of one wave run side by side, waves one after the other. Each shard of a step is a process,
so a fault, a hang or a missing module costs only that shard. README.md lists what each step proves.
The run passes if every finding of every step is right: a missing, timed out or unreached step fails
it.
This file needs only the standard library; the steps need numpy, torch
and cuda-python.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
GOOD = ("PASSED", "REHEARSED")
SEVERITY = (*GOOD, "SKIPPED", "MISSING", "TIMEOUT", "FAILED")
# The small preset of a rehearsal scans in series alone.
PARALLEL = () if "--rehearse" in sys.argv else ("scan2d-parallel",)
KINDS = (
    "correlation4d-p",
    *PARALLEL,
    "scan2d-serial",
    "scan_prologue",
    "scan_epilogue",
    "norm_mlp",
)
DTYPES = ("float32", "float16", "bfloat16")
GRADIENTS = tuple(
    f"{name} {kind}" for name in ("scan2d", "scan_fn", "correlation") for kind in DTYPES
)
KERNELS = tuple(f"{kind} {dtype}" for kind in KINDS for dtype in DTYPES)


@dataclass(frozen=True)
class Step:
    """A step: its module, its wave, its time limit in seconds, its shards, and what must be right.

    Unless the steps of `after` are right, a speed means nothing and the step is skipped.
    """

    module: str
    wave: int
    limit: int
    shards: tuple[str, ...] = ("",)
    after: tuple[str, ...] = ()


# The most telling steps come first. Steps that measure speed have a wave to themselves. Most of
# `gradients` is compiling, so that it shares one, and its shards are many.
STEPS = {
    "versions": Step("proofs", 0, 20),
    "aot": Step("proofs", 1, 85, KERNELS),
    "jit": Step("proofs", 1, 85, KERNELS),
    "cubin": Step("proofs", 2, 120, DTYPES),
    "sanitizer": Step("proofs", 2, 180, ("memcheck", "racecheck", "synccheck")),
    "memory": Step("proofs", 2, 120),
    "model": Step("proofs", 2, 240, ("vits14", "vitb14", "tiny", "training")),
    "gradients": Step("proofs", 2, 240, GRADIENTS),
    "times": Step("timings", 3, 80, after=("aot", "jit")),
    "mamba": Step("mamba", 4, 40, after=("aot",)),
    "modules": Step("timings", 5, 40, after=("model",)),
    "ncu": Step("timings", 6, 30, after=("aot",)),
    "sweep": Step("timings", 7, 45),
}
# A step starts only with this many seconds left: with less it would time out.
LEAST = 20
# For the whole run, and the seconds of it that the report may take.
MINUTES, CLOSING = 9.8, 5
# A CPU is slower than a card: in a rehearsal the limits of the steps are this many times as long.
PATIENCE = 4


@dataclass
class Shard:
    """One process and its findings so far."""

    step: str
    name: str
    part: Path
    log: IO[bytes]
    process: subprocess.Popen[bytes]
    began: float
    limit: float
    seconds: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def poll(self) -> bool:
        """Collect the process if it has ended or must end; return whether it is done."""
        code, now = self.process.poll(), time.monotonic()
        if code is None and now - self.began < self.limit:
            return False
        if self.seconds is None:
            self.seconds = round(now - self.began, 1)
            if code is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                # With a limit: a process that waits for a hung card cannot be killed.
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(10)
            self._read(code)
        return True

    def _read(self, code: int | None) -> None:
        lines = self.part.read_text().splitlines() if self.part.exists() else []
        self.rows = [json.loads(line) for line in lines if line.endswith("}")]
        with self.log:
            self.log.seek(0)
            tail = self.log.read().decode(errors="replace")[-3000:]
        if code is None:
            why = f"killed after {self.limit:.0f} s, {len(self.rows)} findings before"
            self.rows.append({"case": self.name, "status": "TIMEOUT", "error": why, "log": tail})
        elif code and all(row["status"] in GOOD for row in self.rows):
            how = f"signal {-code}" if code < 0 else f"exit {code}"
            self.rows.append({"case": self.name, "status": "FAILED", "error": how, "log": tail})
        elif not self.rows:
            self.rows.append({"case": self.name, "status": "FAILED", "error": "found nothing"})


def with_gates(names: list[str]) -> list[str]:
    """Return the steps and those that must be right before them, in the order of `STEPS`."""
    wanted = set(names).union(*(STEPS[name].after for name in names))
    return [name for name in STEPS if name in wanted]


def longest() -> int:
    """Return the sum of the waves' time limits, in seconds."""
    limits: dict[int, int] = {}
    for step in STEPS.values():
        limits[step.wave] = max(step.limit, limits.get(step.wave, 0))
    return sum(limits.values())


def worst(rows: list[dict[str, Any]]) -> str:
    """Return the worst status; a step without findings was skipped."""
    return max((row["status"] for row in rows), key=SEVERITY.index, default="SKIPPED")


class Report:
    """The results so far, written after every change: the machine may disappear at any moment."""

    def __init__(self, out: Path, rehearsal: bool, wanted: Sequence[str], part: str = "") -> None:
        """Begin without results.

        Args:
            out: the folder for the results.
            rehearsal: whether this is one.
            wanted: the steps that must be right.
            part: the shards that were asked for; empty for all.
        """
        self.out, self.began = out, time.monotonic()
        self.results: dict[str, dict[str, Any]] = {}
        self.rehearsal, self.wanted, self.part = rehearsal, wanted, part
        self.unfinished = set(wanted)
        out.mkdir(parents=True, exist_ok=True)

    def put(
        self, name: str, rows: list[dict[str, Any]], seconds: float, finished: bool = True
    ) -> None:
        """Record a step's findings so far."""
        if finished:
            self.unfinished.discard(name)
        self.results[name] = {"status": worst(rows), "seconds": seconds, "rows": rows}
        total = round(time.monotonic() - self.began)
        document = {"rehearsal": self.rehearsal, "verdict": self.verdict(), "seconds": total}
        document["steps"] = self.results
        self._write("first_light.json", json.dumps(document, indent=1))
        self._write("first_light.txt", self.text())

    def _write(self, name: str, text: str) -> None:
        place = self.out / f".{name}"
        place.write_text(text + "\n")
        place.replace(self.out / name)

    def right(self, name: str) -> bool:
        """Return whether a step ran and was right."""
        return name in self.results and self.results[name]["status"] in GOOD

    def verdict(self) -> str:
        """Return PASSED, or FAILED and the steps that are not right or not finished.

        What was left out at the caller's wish is named: it did not pass.
        """
        good = GOOD if self.rehearsal else GOOD[:1]
        wrong = [name for name, result in self.results.items() if result["status"] not in good]
        if not self.results:
            return "FAILED: no step ran"
        if wrong:
            return f"FAILED: {', '.join(wrong)}"
        if self.unfinished:
            return f"FAILED: not finished: {', '.join(n for n in STEPS if n in self.unfinished)}"
        if self.rehearsal:
            return f"REHEARSED: {self.not_rehearsed()}"
        alone = [", ".join(self.wanted)] if set(self.wanted) < set(STEPS) else []
        alone += [f"shards {self.part}"] if self.part else []
        return f"PASSED: {'; '.join(alone)} alone" if alone else "PASSED"

    def not_rehearsed(self) -> str:
        """Say what a rehearsal leaves to the card."""
        idle = [
            name
            for name, result in self.results.items()
            if all(row.get("needs_a_card") for row in result["rows"])
        ]
        here = f"; of {', '.join(idle)} nothing ran here either" if idle else ""
        return f"nothing ran on a card{here}"

    def text(self) -> str:
        """Return the wrong findings, the measurements, one line per step, and the verdict."""
        lines = []
        for name, result in self.results.items():
            lines += ["", f"== {name}", *_details(name, result["rows"])]
        lines += [""]
        for name, result in self.results.items():
            counts = Counter(row["status"] for row in result["rows"])
            said = ", ".join(f"{counts[s]} {s.lower()}" for s in SEVERITY if counts[s])
            lines.append(f"{name:10} {result['status']:9} {result['seconds']:6.1f} s  {said}")
        lines.append(self.verdict())
        return "\n".join(lines)


def _details(name: str, rows: list[dict[str, Any]]) -> list[str]:
    odd = [row for row in rows if row["status"] not in GOOD]
    lines = [_line(row, log=place < 3) for place, row in enumerate(odd[:20])]
    lines += [f"   and {len(odd) - 20} more"] if len(odd) > 20 else []
    if STEPS[name].module in ("timings", "mamba") or name == "versions":
        return lines + [_line(row) for row in rows if row["status"] in GOOD]
    for short in ("fp32", "fp16", "bf16"):
        right = [r for r in rows if short in r["case"] and r["status"] in GOOD and "error" in r]
        if right:
            most = max(r["error"] for r in right)
            lines.append(f"   {short}: {len(right)} right, worst error {most:.2e}")
    return lines


def _line(row: dict[str, Any], log: bool = False) -> str:
    if "share" in row:
        how = "" if row["how"] == "graph" else row["how"]
        return f"{row['ms']:10.4f} ms {row['share']:7.1%} of {row['bound']:8} {row['case']} {how}"
    values = {k: v for k, v in row.items() if k not in ("case", "status", "log", "counters")}
    text = " ".join(f"{k}={_short(v)}" for k, v in values.items())
    tail = str(row.get("log", "")).splitlines()[-6:] if log and row["status"] != "MISSING" else []
    return f"   {row['status']:9} {row['case']}: {text}"[:700] + "".join(
        f"\n      | {t}" for t in tail
    )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def start(name: str, shard: str, folder: Path, seconds: float, flags: list[str]) -> Shard:
    """Start the process of one shard."""
    stem = "-".join([name, *shard.split()])
    part, log = folder / f"{stem}.jsonl", (folder / f"{stem}.log").open("w+b")
    command = [sys.executable, str(HERE / "first_light.py"), "--child", name, "--shard", shard]
    environment = os.environ | {
        "FIRST_LIGHT_PART": str(part),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1" if flags else "4",
    }
    process = subprocess.Popen(
        command + flags, stdin=subprocess.DEVNULL, stdout=log,
        stderr=subprocess.STDOUT, env=environment, start_new_session=True,
    )  # fmt: skip
    return Shard(name, shard, part, log, process, time.monotonic(), seconds)


def chosen(shards: tuple[str, ...], words: list[str]) -> list[str]:
    """Return the shards with one of the words in their names, or all if none has."""
    return [s for s in shards if set(s.split()) & set(words)] or list(shards)


def run_wave(names: list[str], report: Report, folder: Path, end: float, arguments: Any) -> None:
    """Run the steps of one wave; record each as soon as its last shard is done."""
    flags = ["--rehearse"] if arguments.rehearse else []
    ready = []
    for name in names:
        wrong = [gate for gate in STEPS[name].after if not report.right(gate)]
        late = end - time.monotonic() < LEAST
        if wrong or late:
            why = "no time left" if late else f"{', '.join(wrong)} is not right"
            report.put(name, [{"case": "", "status": "SKIPPED", "error": why}], 0)
        else:
            ready.append(name)
    shards = {name: chosen(STEPS[name].shards, arguments.shards) for name in ready}
    waiting = [(name, shard) for name in ready for shard in shards[name]]
    running: list[Shard] = []
    done: list[Shard] = []
    while waiting or running:
        while waiting and len(running) < arguments.jobs:
            name, shard = waiting.pop(0)
            limit = STEPS[name].limit * (PATIENCE if arguments.rehearse else 1)
            seconds = min(limit, max(1.0, end - time.monotonic()))
            running.append(start(name, shard, folder, seconds, flags))
        for shard in [s for s in running if s.poll()]:
            running.remove(shard)
            done.append(shard)
            mine = [s for s in done if s.step == shard.step]
            rows = [row for s in mine for row in s.rows]
            finished = len(mine) == len(shards[shard.step])
            report.put(shard.step, rows, max(s.seconds or 0 for s in mine), finished)
            if finished:
                print(f"{shard.step}: {report.results[shard.step]['status']}", flush=True)
        time.sleep(0.05)


def draw_page(out: Path) -> None:
    """Draw the findings beside them; the run's verdict does not depend on it."""
    command = [sys.executable, "-B", str(HERE / "page.py")]
    command += [str(out / "first_light.json"), str(out / "first_light.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"no page: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def run_child(name: str, shard: str) -> int:
    """Run one shard, in this process."""
    try:
        import cases

        if "FIRST_LIGHT_PLANT" in os.environ:
            import rehearsal

            rehearsal.plant()

        __import__(STEPS[name].module if name in STEPS else "proofs")
        cases.FUNCTIONS[name](shard)
    except Exception as error:
        traceback.print_exc()
        missing = isinstance(error, ModuleNotFoundError) or type(error).__name__ == "Missing"
        row = {"case": shard, "status": "MISSING" if missing else "FAILED"}
        row |= {"error": f"{type(error).__name__}: {error}"[:600], "log": traceback.format_exc()}
        with open(os.environ["FIRST_LIGHT_PART"], "a") as part:
            part.write(json.dumps(row) + "\n")
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time limit of the run")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "first_light")))
    parser.add_argument("--only", action="append", choices=STEPS,
                        help="this step and those that it relies on; repeatable")  # fmt: skip
    parser.add_argument("--rehearse", action="store_true", help="without a card")
    parser.add_argument("--plant", choices=("wrong", "fault", "hang", "missing"),
                        help="rehearse with this fault in every step")  # fmt: skip
    parser.add_argument("--shards", action="append", default=[], metavar="WORD",
                        help="only shards with this word, if a step has any")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=18, help="processes at a time")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--shard", default="", help=argparse.SUPPRESS)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plant and not arguments.rehearse:
        parser.error("--plant needs --rehearse")
    if arguments.plant:
        os.environ["FIRST_LIGHT_PLANT"] = arguments.plant
    if arguments.bare:
        from proofs import run_bare

        run_bare(arguments.bare)
        return 0
    if arguments.child:
        return run_child(arguments.child, arguments.shard)
    wanted = with_gates(arguments.only or list(STEPS))
    report = Report(arguments.out, arguments.rehearse, wanted, " ".join(arguments.shards))
    end = report.began + 60 * arguments.minutes - CLOSING
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for wave in sorted({STEPS[name].wave for name in wanted}):
            names = [name for name in wanted if STEPS[name].wave == wave]
            run_wave(names, report, Path(folder), end, arguments)
    print(report.text())
    draw_page(arguments.out)
    return 1 if report.verdict().startswith("FAILED") else 0


if __name__ == "__main__":
    raise SystemExit(main())
