"""The ledger's tables in its README, between their two marks."""

from __future__ import annotations

from typing import Any

from uino_deploy import markdown
from uino_deploy.benchmarks.ledger.rows import Record, kernel_name, megabytes, shape_text, unique
from uino_deploy.benchmarks.ledger.whole import Whole, count_whole

# The architecture whose traffic the README prints, and the model.
_ARCH, _PRESET = "sm_87", "vitb14"


def renew(text: str, records: list[Record]) -> str:
    """Return a Markdown text with the ledger's tables between its two marks.

    Raises:
        InputError: the text has no marks.
    """
    return markdown.renew(text, "ledger", tables(records))


def tables(records: list[Record]) -> str:
    """Return all tables, each with a sentence before it."""
    shown = [r for r in records if r["arch"] == _ARCH and _PRESET in r["presets"]]
    parts = [
        f"One query of `{_PRESET}`'s whole `Hypercorrelation`, one shot, float16:\n\n"
        + _whole(count_whole(_PRESET, "float16")),
        f"Traffic of `{_PRESET}` on {_ARCH}, megabytes:\n\n" + _traffic(shown),
        "Registers a thread and, in brackets, theoretical occupancy in per cent:\n\n"
        + _resources(records),
        f"Floors in microseconds, `{_PRESET}` in float16, from the boards' data sheets "
        "(`boards.py`); no kernel can be faster, and none is expected to be as fast:\n\n"
        + _floors([r for r in records if _PRESET in r["presets"] and r["dtype"] == "float16"]),
        "Kernels compiled, and executed against the reference (worst relative L2 error of any "
        "kernel on a small shape and, in brackets, with sums as long as a preset's; - if the "
        "executor does not know its instructions):\n\n" + _executed(records),
    ]
    return "\n" + "\n".join(parts) + "\n"


def _traffic(records: list[Record]) -> str:
    caches = unique(name for r in records for name in r["dram_bytes"])
    header = ["kernel", "type", "shape", "programs", "serial steps", "must", "asked"]
    header += ["asked / must", *(f"DRAM, {name} cache" for name in caches)]
    header += ["mamba-ssm", "unfused"]
    return markdown.table(header, [_traffic_row(r) for r in records])


def _traffic_row(r: Record) -> list[str]:
    asked = ratio = "-"
    if r["requested_bytes"] is not None:
        total = r["requested_bytes"] + r["written_bytes"]
        asked, ratio = megabytes(total), f"{total / r['compulsory_bytes']:.3g}"
    mamba = "-"
    if r.get("mamba_ssm_requested_bytes"):
        mamba = megabytes(r["mamba_ssm_requested_bytes"] + r["mamba_ssm_written_bytes"])
    numbers = [str(r["programs"]), str(r["serial_steps"]), megabytes(r["compulsory_bytes"])]
    names = [kernel_name(r), r["dtype"], shape_text(r["shape"])]
    memory = [megabytes(moved) for moved in r["dram_bytes"].values()]
    return [*names, *numbers, asked, ratio, *memory, mamba, megabytes(r["unfused_bytes"])]


def _whole(whole: Whole) -> str:
    lines = [[name, str(n), megabytes(moved)] for name, n, moved in whole.by_operator]
    lines.append(["all", str(whole.launches), megabytes(whole.bytes)])
    lines.append(["of parameters alone, folded at export", str(whole.constants), "-"])
    return markdown.table(["operator", "launches", "megabytes"], lines)


def _resources(records: list[Record]) -> str:
    archs = unique(r["arch"] for r in records)
    held = {(kernel_name(r), r["dtype"], r["arch"]): r for r in records}
    lines = []
    for name, dtype in unique((k[0], k[1]) for k in held):
        row = [held.get((name, dtype, arch)) for arch in archs]
        cells = [f"{r['registers']} ({r['occupancy']:.0%})" if r else "-" for r in row]
        lines.append([name, dtype, *(cell.replace("%", "") for cell in cells)])
    return markdown.table(["kernel", "type", *archs], lines)


def _floors(records: list[Record]) -> str:
    boards = unique(board for r in records for board in r["floor_us"])
    floors: dict[str, dict[str, float]] = {}
    for r in records:
        floors.setdefault(f"{kernel_name(r)}, {shape_text(r['shape'])}", {}).update(r["floor_us"])
    lines = [
        [name, *(f"{f[b]:.3g}" if b in f else "-" for b in boards)] for name, f in floors.items()
    ]
    return markdown.table(["kernel", *boards], lines)


def _executed(records: list[Record]) -> str:
    header = ["arch", "CUDA", "kernels", "spilled", "local", "largest shared", "executed"]
    dtypes = unique(r["dtype"] for r in records)
    lines = []
    for arch in unique(r["arch"] for r in records):
        mine = {(kernel_name(r), r["dtype"]): r for r in records if r["arch"] == arch}
        held = list(mine.values())
        lines.append(
            [
                *(arch, held[0]["cuda"], str(len(held))),
                str(max(r["spill_bytes"] for r in held)),
                str(max(r["local_bytes"] for r in held)),
                str(max(r["shared_bytes"] for r in held)),
                str(sum(r["relative_l2"] is not None for r in held)),
                *(_worst(held, dtype) for dtype in dtypes),
            ]
        )
    return markdown.table([*header, *dtypes], lines)


def _worst(records: list[dict[str, Any]], dtype: str) -> str:
    mine = [r for r in records if r["dtype"] == dtype and r["relative_l2"] is not None]
    if not mine:
        return "-"
    small, full = (max(r[key] for r in mine) for key in ("relative_l2", "relative_l2_full"))
    return f"{small:.1e} ({full:.1e})"
