"""The results of a run on a card as an HTML page, or as the README's table of times.

python page.py first_light.json OUT.html
python page.py benchmarks/data/gpu/RUN.json tests/gpu/README.md
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "site"))
sys.path.append(str(HERE / "wheels"))

GOOD = ("PASSED", "REHEARSED")
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
LEAD = (
    "Every claim was checked on the card against float64 references that were written for this "
    "check. Times are medians of CUDA graph replays over inputs larger than the L2 cache.",
    "A share is that of the roofline measured in the same run: bytes over the copy rate, or "
    "operations over the matrix rate, whichever takes longer; each array counts once.",
)
Row = dict[str, Any]


def result_page(found: Row) -> str:
    """Return the page of a run's JSON document.

    Raises:
        DependencyError: Jinja2 or matplotlib is not installed.
    """
    from uino_deploy.page import Section, Verdict, page

    steps = found["steps"]
    wrong = [name for name, step in steps.items() if step["status"] not in GOOD]
    passed = not wrong and found["verdict"].startswith("PASSED")
    text = found["verdict"] if not wrong else "FAILED"
    verdict = Verdict(text, "passed" if passed else "failed", wrong)
    if found["rehearsal"]:
        verdict = Verdict("Rehearsal: nothing ran on a card", "disturbed", wrong)
    return page(
        f"First light on {card(steps)}",
        LEAD,
        [verdict],
        [
            Section("Steps", [step_table(steps)]),
            Section("Wrong findings", wrong_tables(steps)),
            Section("Operators", times(steps, "times")),
            Section("Beside mamba-ssm", beside_mamba(steps)),
            Section("Modules and whole queries", times(steps, "modules")),
            Section("Counters beside the ledger's", counters(steps)),
            Section("Variants", times(steps, "sweep")),
        ],
    )


def rows_of(steps: Row, name: str) -> list[Row]:
    """Return the findings of a step; none if it did not run."""
    found: list[Row] = steps.get(name, {}).get("rows", [])
    return found


def card(steps: Row) -> str:
    """Return the card's name."""
    names = [r["name"] for r in rows_of(steps, "versions") if r["case"] == "card" and "name" in r]
    return names[0] if names else "no card"


def step_table(steps: Row) -> Any:
    """Return one row a step: its status, seconds, and how many findings are of which kind."""
    from uino_deploy.page import Table

    lines = []
    for name, step in steps.items():
        counts = Counter(row["status"] for row in step["rows"])
        said = ", ".join(f"{count} {status.lower()}" for status, count in counts.items())
        lines.append([name, step["status"], f"{step['seconds']:.1f}", said])
    return Table("Steps in their order", ["step", "status", "seconds", "findings"], lines)


def wrong_tables(steps: Row) -> list[Any]:
    """Return tables of the wrong findings, if any."""
    from uino_deploy.page import Table

    lines = [
        [name, row["status"], row["case"], short(row.get("error", row.get("why", "")))]
        for name, step in steps.items()
        for row in step["rows"]
        if row["status"] not in GOOD
    ]
    heads = ["step", "status", "case", "relative L2 error, or reason"]
    return [Table("Findings that are not right", heads, lines)] if lines else []


def short(value: Any) -> str:
    """Return a number in four digits, or a text cut to a line."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:160]


def times(steps: Row, name: str) -> list[Any]:
    """Return the measured cases of a step, the slowest part of the roofline first."""
    from uino_deploy.page import Table

    timed = [row for row in rows_of(steps, name) if "ms" in row]
    lines = [
        [r["case"], f"{r['ms']:.4f}", f"{r['floor_ms']:.4f}", f"{r['share']:.1%}", r["bound"]]
        for r in timed
    ]
    heads = ["case", "ms", "roofline, ms", "share", "bound by"]
    return [Table(f"Step {name}", heads, lines)] if lines else []


def beside_mamba(steps: Row) -> list[Any]:
    """Return our scan beside mamba-ssm's kernel, alone and with what it needs around it."""
    from uino_deploy.page import Table

    hows, calls = ("ours", "mamba-ssm alone", "mamba-ssm with glue"), {}
    for row in rows_of(steps, "mamba"):
        for how in hows:
            if "ms" in row and row["case"].startswith(f"{how} "):
                calls.setdefault(row["case"].removeprefix(f"{how} "), {})[how] = row
    lines = []
    for call, found in calls.items():
        if len(found) == len(hows):
            ours, alone, glued = (found[how] for how in hows)
            lines.append([call, *(f"{r['ms']:.4f}" for r in (ours, alone, glued)),
                          *(f"{r['ms'] / ours['ms']:.2f}" for r in (alone, glued)),
                          *(f"{r['share']:.1%}" for r in (ours, alone, glued))])  # fmt: skip
    heads = ["scan", *(f"{how}, ms" for how in hows), "alone / ours", "with glue / ours"]
    heads += [f"share of the roofline, {how}" for how in hows]
    title = "Step mamba: its glue permutes to scan order and back, and widens the step sizes"
    return [Table(title, heads, lines)] if lines else []


def counters(steps: Row) -> list[Any]:
    """Return what the card counted for each kernel, and what the ledger counted on a CPU."""
    from uino_deploy.page import Table

    lines = []
    for row in rows_of(steps, "ncu"):
        if "us" in row and "dram_mb" in row:
            must, asked = ledger_megabytes(row["case"])
            card_counts = [
                f"{row[key]:.1f}" for key in ("us", "dram_mb", "l2_mb", "issue", "tensor")
            ]
            lines.append([row["case"], *card_counts, must, asked, str(row["stalls"])])
    heads = ["kernel and shape", "us, cold", "DRAM MB", "L2 MB", "issue %", "tensor %"]
    heads += ["ledger: must MB", "ledger: requested MB", "stalls"]
    return [Table("One cold launch of every kernel", heads, lines)] if lines else []


def ledger_megabytes(case: str) -> tuple[str, str]:
    """Return the ledger's megabytes for a counted launch: each array once, and requested."""
    from uino_deploy.benchmarks.ledger.store import LEDGER

    kernel, *_, plane = case.split()
    for record in json.loads(LEDGER.read_text())["kernels"]:
        name = f"{record['op']}-{record['config']}-{SHORT[record['dtype']]}-{record['arch']}"
        sizes = [record["shape"].get(k) for k in ("sequences", "height", "width", "channels")]
        of_scan = "x".join(map(str, sizes))
        of_correlation = "correlation" if "vitb14" in record["presets"] else ""
        if name == kernel and plane in (of_scan, of_correlation):
            asked = record["requested_bytes"] + record["written_bytes"]
            return f"{record['compulsory_bytes'] / 1e6:.1f}", f"{asked / 1e6:.1f}"
    return "", ""


def readme_table(found: Row) -> str:
    """Return the times at vitb14, one image and one shot in half precision, as Markdown.

    One row an operator's call or a module: milliseconds of the compiled kernel that ships for that
    shape (the quicker tiling where there are two), of Triton's own compilation on that machine, and
    of PyTorch's operators.
    """
    from uino_deploy.markdown import table

    calls: dict[str, dict[str, Row]] = {}
    for row in rows_of(found["steps"], "times") + rows_of(found["steps"], "modules"):
        how, _, call = row["case"].partition(" fp16 vitb14 B1")
        if call or row["case"].endswith(" fp16 vitb14 B1"):
            kind, name = how.split()[0], call.removeprefix(" K1 ") or how
            best = calls.setdefault(name, {}).get(kind)
            if best is None or row["ms"] < best["ms"]:
                calls[name][kind] = row
    lines = []
    for name, kinds in calls.items():
        first = kinds.get("aot") or kinds[name]
        shown = [f"{kinds[k]['ms']:.3f}" if k in kinds else "" for k in ("jit", "unfused")]
        lines.append([name, f"{first['ms']:.3f}", *shown, f"{first['share']:.0%}"])
    heads = ["", "as shipped, ms", "compiled there, ms", "PyTorch's operators, ms"]
    return table([*heads, "share of the roofline"], lines, numbers=True)


def main() -> int:
    if len(sys.argv) != 3:
        sys.exit("usage: page.py RUN.json OUT.html | README.md")
    source, out = map(Path, sys.argv[1:])
    found = json.loads(source.read_text())
    if out.suffix == ".md":
        from uino_deploy.markdown import renew, rewrite

        rewrite(out, lambda text: renew(text, "times on a card", readme_table(found)))
    else:
        out.write_text(result_page(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
