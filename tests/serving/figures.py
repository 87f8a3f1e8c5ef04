"""The measured section of docs/service.md, from a committed run of `make serve-check`.

After a run: cp build/serving.json tests/serving/measured.json && python -m tests.serving.figures
"""

from __future__ import annotations

import json
import textwrap
from typing import Any

from tests.pages import ROOT
from uino_deploy.markdown import renew, rewrite, table

MEASURED = ROOT / "tests" / "serving" / "measured.json"
PAGE = ROOT / "docs" / "service.md"


def section(report: dict[str, Any]) -> str:
    """Return a run as Markdown."""
    rows = [
        [name, str(each["answered"]), f"{each['answered_a_second']:g}", *quantiles(each["ms"])]
        for name, each in (
            *(
                (f"{count} client{'s' * (count != '1')}", each)
                for count, each in report["clients"].items()
            ),
            ("8 clients beside 100 slow ones", report["slow_clients"]),
            ("64 clients, a queue of 8", report["overload"]),
            ("64 clients, workers killed", report["killed_workers"]),
        )
    ]
    one, killed = report["clients"]["1"]["cpu_ms_an_answer"], report["killed_workers"]
    loads = f"{report['load_average_before'][0]:g} to {report['load_average_after'][0]:g}"
    wrong = sum(len(each["wrong"]) for each in report["clients"].values())
    wrong += sum(len(report[each]["wrong"]) for each in ("slow_clients", "overload"))
    wrong += len(killed["wrong"])
    overload, own = report["overload"], report["in_process"]["cpu_ms"]
    said = [
        f"One run ({report['machine']}; {report['image']}), **on a machine that did other work**:",
        f"its load average was {loads}.",
        "Times and rates are many times worse than an idle machine's: repeat them, do not rely on",
        f"them. Wrong or lost answers: {wrong}.",
        f"Killed workers: {killed['kills']}, replaced: {killed['replaced']}.",
        f"Refused at once: {overload['refused']}, half of them within",
        f"{overload['refused_ms']['p50']:g} ms.",
        "Processor time of an answer, which suffers less from other work:",
        f"{one['service']:g} ms in the service and {one['workers']:g} ms in its worker, against",
        f"{own:g} ms of a predictor in one process.",
    ]
    text = textwrap.fill(" ".join(said), 118) + "\n\n"
    return text + table(["load", "answers", "a second", "p50 ms", "p95 ms", "p99 ms"], rows)


def quantiles(found: dict[str, float]) -> list[str]:
    """Return p50, p95 and p99."""
    return [f"{found[name]:g}" for name in ("p50", "p95", "p99")]


def report() -> dict[str, Any]:
    """Return the committed run."""
    found: dict[str, Any] = json.loads(MEASURED.read_text("utf-8"))
    return found


if __name__ == "__main__":
    rewrite(PAGE, lambda page: renew(page, "measured", section(report())))
