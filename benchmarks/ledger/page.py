"""The ledger's page: bytes and floors as dots, resources and all records as tables."""

from __future__ import annotations

from collections.abc import Sequence

from uino_deploy.benchmarks.ledger.boards import BOARDS
from uino_deploy.benchmarks.ledger.rows import (
    HEADER,
    Record,
    kernel_name,
    rows,
    shape_text,
    unique,
)
from uino_deploy.charts import dots
from uino_deploy.page import Block, Section, Table, Text, page

_LEAD = (
    "What each compiled kernel holds, computes and moves. Global memory traffic was counted by "
    "executing the PTX on a CPU, scaled from whole blocks. Registers, spills and stack come from "
    "the assembler. mamba-ssm's traffic was counted the same way on its own CUDA kernel. Nothing "
    "was timed.",
    "Floors are rooflines from data sheets: no kernel can be faster, and none is expected to be as "
    "fast.",
)

_BYTES = (
    "must: each array once, the scan's x and y in every direction",
    "requested by this kernel",
    "requested by mamba-ssm's kernel",
    "moved by PyTorch's operators",
)
_BOARDS = [board.name for board in BOARDS]


def ledger_page(records: list[Record]) -> str:
    """Return the ledger as one HTML page."""
    archs = unique(r["arch"] for r in records)
    arch = "sm_87" if "sm_87" in archs else archs[0] if archs else "no architecture"
    launches = [(r, _megabytes(r)) for r in records if r["arch"] == arch]
    floors = [(r, [r["floor_us"].get(board) for board in _BOARDS]) for r in _merged(records)]
    return page(
        "Kernel ledger",
        _LEAD,
        [],
        [
            Section(f"Bytes of one launch ({arch})", _charts("megabytes", _BYTES, launches)),
            Section("Floors", [*_charts("microseconds", _BOARDS, floors), _sources()]),
            Section("Registers of a thread, and occupancy", [_resources(records)]),
            Section(
                "All records",
                [Table("Every kernel, architecture, type and shape", HEADER, rows(records))],
            ),
        ],
    )


def _megabytes(r: Record) -> list[float | None]:
    counts = [r["compulsory_bytes"], *(_sum(r, prefix) for prefix in ("", "mamba_ssm_"))]
    return [None if count is None else count / 1e6 for count in [*counts, r["unfused_bytes"]]]


def _sum(r: Record, prefix: str) -> float | None:
    requested: float | None = r.get(f"{prefix}requested_bytes")
    return None if requested is None else requested + r[f"{prefix}written_bytes"]


def _merged(records: list[Record]) -> list[Record]:
    """Return one record for each kernel, type and shape, with the boards of every architecture."""
    merged: dict[tuple[str, str, str], Record] = {}
    for r in records:
        key = (kernel_name(r), r["dtype"], shape_text(r["shape"]))
        before = merged.get(key, r)["floor_us"]
        merged[key] = {**r, "floor_us": {**before, **r["floor_us"]}}
    return [r for r in merged.values() if r["floor_us"]]


def _charts(
    axis: str, series: Sequence[str], found: Sequence[tuple[Record, Sequence[float | None]]]
) -> list[Block]:
    """Draw a chart for each element type that has a value to show."""
    drawn: list[Block] = []
    for dtype in unique(r["dtype"] for r, _ in found):
        lines = [(_label(r), values) for r, values in found if r["dtype"] == dtype]
        if any(value for _, values in lines for value in values):
            drawn.append(dots(dtype, axis, series, lines))
    return drawn or [Text(["Nothing was counted."])]


def _label(r: Record) -> str:
    name = kernel_name(r).replace("correlation4d", "corr.").replace("selective_scan2d", "scan")
    name = name.removeprefix("scan_")
    return f"{name}, {shape_text(r['shape'])}"


def _sources() -> Table:
    lines = [
        [
            *(b.name, b.arch),
            *(f"{rate:g}" for rate in (b.bandwidth, b.half_tflops, b.float32_tflops)),
            *(b.source, b.checked),
        ]
        for b in BOARDS
    ]
    header = ["board", "arch", "GB/s", "half TFLOP/s", "float32 TFLOP/s", "source", "read at"]
    return Table("Boards and their data sheets", header, lines)


def _resources(records: list[Record]) -> Table:
    """Return a table of variants by architectures, shaded by occupancy."""
    archs = unique(r["arch"] for r in records)
    held = {(kernel_name(r), r["dtype"], r["arch"]): r for r in records}
    variants = unique((name, dtype) for name, dtype, _ in held)
    grid = [[held.get((*variant, arch)) for arch in archs] for variant in variants]
    return Table(
        "Registers, occupancy in per cent (the shade) and spills",
        ["kernel", "type", *archs],
        [[*key, *map(_resource, line)] for key, line in zip(variants, grid, strict=True)],
        shades={
            (y, x): r["occupancy"]
            for y, line in enumerate(grid)
            for x, r in enumerate(line, 2)
            if r is not None
        },
    )


def _resource(r: Record | None) -> str:
    if r is None:
        return "-"
    spilled = f", {r['spill_bytes']} B spilled" if r["spill_bytes"] else ""
    return f"{r['registers']}, {100 * r['occupancy']:.0f} %{spilled}"
