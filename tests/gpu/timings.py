"""The steps that measure speed; nothing else runs on the card meanwhile."""

from __future__ import annotations

import csv
import itertools
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cases import (
    DEVICE,
    FAILED,
    MAIN,
    PASSED,
    REHEARSE,
    SHORT,
    Case,
    Missing,
    check_kernel,
    checked,
    cuda_driver,
    draw_torch,
    finding,
    guarded,
    kernel_records,
    launch_of,
    load_as_aot,
    model_cases,
    on_card,
    out_shapes,
    public,
    row,
    step,
)
from proofs import bare, segmenter

BATCHES = (1,) if REHEARSE else (1, 8)


def clock(calls: list[Callable[[], Any]], least: int = 20) -> dict[str, Any]:
    """Time a call by replays of a CUDA graph that cycles through `calls`, each with own inputs."""
    import torch

    if REHEARSE:
        began = time.perf_counter()
        calls[0]()
        return {"ms": 1e3 * (time.perf_counter() - began), "how": "rehearsed"}
    torch.cuda.synchronize()  # the inputs were drawn on another stream
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # compiles, loads and allocates before the capture
        for call in calls:
            call()
    torch.cuda.synchronize()
    calls = calls * -(-least // len(calls))
    graph, how = torch.cuda.CUDAGraph(), "graph"
    try:
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        replay = graph.replay
    except Exception as error:  # without a capture, launch gaps are included
        how = f"eager, no graph: {error}"[:160]
        torch.cuda.synchronize()
        replay = lambda: [call() for call in calls]  # noqa: E731
    times = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / len(calls))
    times = sorted(times[2:])
    return {"ms": statistics.median(times), "spread": times[-2] / times[1] - 1, "how": how}


def rounds(nbytes: int) -> int:
    """Return the number of sets of inputs that overflows the L2 cache before one repeats."""
    import torch

    l2 = 0 if REHEARSE else torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, min(24, -(-3 * l2 // nbytes)))


def ceilings() -> dict[str, float]:
    """Measure this card's peak, today: bytes per second, and operations per second by type."""
    import torch

    size, side = (1 << 12, 64) if REHEARSE else (1 << 30, 8192)
    source = torch.randn(size // 4, device=DEVICE)
    target = torch.empty_like(source)
    peaks = {"bytes": 2 * size / (1e-3 * clock([lambda: target.copy_(source)])["ms"])}
    for name in ("bfloat16", "float16", "tf32", "float32"):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        dtype = getattr(torch, name.replace("tf32", "float32"))
        a, b = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
        peaks[name] = 2 * side**3 / (1e-3 * clock([lambda: a @ b], 5)["ms"])  # noqa: B023
    torch.backends.cuda.matmul.allow_tf32 = False
    row("ceilings", **{name: f"{value:.4g}" for name, value in peaks.items()})
    return peaks


def operator_work(case: Case, dtype: str) -> tuple[int, float, str]:
    """Return distinct bytes, operations, and the unit whose rate bounds them."""
    size = 4 if dtype == "float32" else 2
    sizes = [*case.shapes.values(), *out_shapes(case)]
    arrays = zip(sizes, case.operator.types(dtype), strict=True)
    nbytes = sum(int(np.prod(s)) * (4 if kind == "float32" else size) for s, kind in arrays)
    if "volume" in case.shapes:
        return nbytes, *_products(case, dtype)
    (out,) = out_shapes(case)
    if case.attributes:
        _, layers, n_query, channels = case.shapes["query"]
        pairs = int(np.prod(out[:2])) * layers * n_query * case.shapes["support"][3]
        # Three products with TF32 operands make one of float32.
        scale, unit = (3, "tf32") if dtype == "float32" else (1, dtype)
        return nbytes, 2 * scale * pairs * channels, unit
    states, rank = case.shapes["a"][2], case.shapes["dt_weight"][2]
    return nbytes, 4 * int(np.prod(out)) * (6 * states + 2 * rank + 12), "float32"


def _products(case: Case, dtype: str) -> tuple[int, str]:
    """Return the operations of a cell's matrices, and their unit; nine taps make one product."""
    weights = [s for name, s in case.shapes.items() if name not in ("volume", "y") and len(s) > 1]
    cells = int(np.prod(case.shapes["volume"][:-1]))
    scale, unit = (3, "tf32") if dtype == "float32" else (1, dtype)
    return 2 * scale * cells * sum(int(np.prod(s)) for s in weights), unit


def report(case: str, timed: dict[str, Any], top: dict[str, float], work: Any) -> None:
    """Record a time and its fraction of the roofline."""
    nbytes, operations, unit = work
    floor = 1e3 * max(nbytes / top["bytes"], operations / top[unit])
    bound = "bytes" if nbytes / top["bytes"] > operations / top[unit] else unit
    values = {"floor_ms": floor, "share": floor / timed["ms"], "bound": bound}
    values |= {"mbytes": nbytes / 1e6, "gflop": operations / 1e9}
    row(case, **timed, **values)


def launches_of(kernel: Any, case: Case, load: Callable[[Any], Any]) -> list[Callable[[], None]]:
    """Return launches on enough sets of inputs to overflow the cache."""
    function, plan = load(kernel), launch_of(kernel, case)
    nbytes, *_ = operator_work(case, kernel.record.dtype)
    calls = []
    for seed in range(rounds(nbytes)):
        inputs = draw_torch(case, kernel.record.dtype, seed)
        outputs, _ = guarded(case, inputs[0])
        calls.append(lambda i=inputs, o=outputs: on_card(function, plan, i, o))
    return calls


def unfused(case: Case, inputs: list[Any]) -> Any:
    """Return the operator as a chain of PyTorch operators, in the inputs' type."""
    from torch.nn import functional as F

    from uino_deploy.selftest.cases import in_torch

    if case.operator.name != "Correlation4d":
        return in_torch(case.operator)(*inputs, **case.attributes)
    query, support, weight = inputs
    height, width, pool = case.attributes.values()
    unit = F.normalize(query, dim=-1, eps=1e-6)[:, None]
    cosine = unit @ F.normalize(support, dim=-1, eps=1e-6).transpose(-1, -2)
    volume = (cosine.relu() * weight[:, :, None, None]).view(-1, 1, height, width)
    return F.avg_pool2d(volume, pool, ceil_mode=True, count_include_pad=False)


@step
def times(_: str) -> None:
    """The kernels as shipped, as Triton compiles them here, and PyTorch's chain."""
    import torch

    top, records = ceilings(), kernel_records()
    for dtype, batch in itertools.product(("float16", "float32", "bfloat16"), BATCHES):
        for case in model_cases(MAIN, batch):
            work, name = operator_work(case, dtype), f"{SHORT[dtype]} {case.label}"
            for kernel in records:
                if kernel.record.dtype == dtype and launch_of(kernel, case):
                    with finding(f"aot {kernel.record.config} {name}"):
                        if batch == 1:
                            check_kernel(load_as_aot(kernel), kernel, case)
                        timed = clock(launches_of(kernel, case, load_as_aot))
                        report(f"aot {kernel.record.config} {name}", timed, top, work)
            sets = [draw_torch(case, dtype, seed) for seed in range(rounds(work[0]))]
            calls = [partial(public(case), *inputs, *case.attributes.values()) for inputs in sets]
            with finding(f"jit {name}"), torch.inference_mode():
                report(f"jit {name}", clock(calls), top, work)
            if dtype == "float16":
                with finding(f"unfused {name}"), torch.inference_mode():
                    report(
                        f"unfused {name}", clock([partial(unfused, case, sets[0])], 1), top, work
                    )


@step
def modules(_: str) -> None:
    """Hypercorrelation, the encoder and a whole query of the main preset."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from uino_deploy.export.precision import in_precision

    top = ceilings()
    net, (query, images, masks) = segmenter(MAIN, None)
    for dtype, batch in itertools.product(("float16", "bfloat16"), BATCHES):
        with finding(f"{SHORT[dtype]} B{batch}"), torch.inference_mode():
            kind = getattr(torch, dtype)
            moved = in_precision(net, SHORT[dtype], 22).to(DEVICE)
            image = query.to(DEVICE, kind).repeat(batch, 1, 1, 1)
            support = moved.enroll(images[:, :1].to(DEVICE, kind), masks[:, :1].to(DEVICE, kind))
            _, deep = moved.encoder(image)
            product = operator_work(model_cases(MAIN, batch)[0], dtype)[1]
            prompt = moved.prompt_generator.hypercorrelation
            parts = {
                "hypercorrelation": (prompt, partial(prompt, deep, support.deep, support.weight)),
                "encoder": (moved.encoder, partial(moved.encoder, image)),
                "query": (moved, partial(moved.segment, image, support)),
            }
            for name, (module, call) in parts.items():
                with FlopCounterMode(display=False) as counter:
                    call()
                operations = counter.get_total_flops() + (0 if name == "encoder" else product)
                nbytes = sum(p.nbytes for p in module.parameters()) + deep.nbytes + image.nbytes
                timed = clock([call], 4)
                report(
                    f"{name} {SHORT[dtype]} {MAIN} B{batch}",
                    timed,
                    top,
                    (nbytes, operations, dtype),
                )


WANTED = (
    *("gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum"),
    *("lts__t_bytes.sum", "smsp__inst_issued.sum", "smsp__inst_executed.sum"),
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    *("sm__inst_executed_pipe_tensor.sum", "sm__inst_executed_pipe_xu.sum"),
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    *(f"smsp__average_warps_issue_stalled_{why}_per_issue_active.ratio"
      for why in ("barrier", "long_scoreboard", "short_scoreboard", "mio_throttle", "lg_throttle",
                  "math_pipe_throttle", "wait", "not_selected", "gmma")),
)  # fmt: skip


@step
def ncu(_: str) -> None:
    """Hardware counters of one launch of every kernel at the main preset's shapes."""
    tool, prefix = shutil.which("ncu"), []
    if REHEARSE:
        launches = counters(_SAMPLE)
        assert launches == [{"Kernel Name": "k", "dram__bytes_read.sum": 1234.5}], launches
        row("reading ncu's page", **brief(launches[0]))
    elif tool is None:
        raise Missing("ncu")
    else:
        known = subprocess.run([tool, "--query-metrics"], capture_output=True, text=True,
                               timeout=60, check=False).stdout  # fmt: skip
        # One metric that this chip lacks would lose them all.
        names = [m for m in WANTED if re.search(rf"^{m.split('.')[0]}\b", known, re.MULTILINE)]
        row("metrics", absent=sorted(set(WANTED) - set(names)))
        prefix = [
            tool,
            "--clock-control",
            "none",
            "--csv",
            "--page",
            "raw",
            "--print-units",
            "base",
        ]
        prefix += ["--metrics", ",".join(names)] if names else ["--set", "full"]
    plans = [
        (kernel.record.name, case.label)
        for kernel in kernel_records() for case in model_cases(MAIN)
        if kernel.record.dtype != "bfloat16" and launch_of(kernel, case)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        text = bare(plans, Path(folder, "bare"), prefix).communicate()[0]
    launches = [] if REHEARSE else counters(text)
    if len(launches) != len(plans):
        status = PASSED if REHEARSE else FAILED
        row("counters", status, launches=len(plans), rows=len(launches), log=text[-3000:])
        return
    for (name, label), values in zip(plans, launches, strict=True):
        row(f"{name} {label}", **brief(values), counters=values)


def brief(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values for a line of the report: megabytes, shares, the three main stalls."""
    dram = [values.get(f"dram__bytes_{way}.sum", float("nan")) for way in ("read", "write")]
    stalls = {
        name.split("stalled_")[1].split("_per_")[0]: value
        for name, value in values.items()
        if "stalled_" in name
    }
    most = sorted(stalls, key=lambda name: -stalls[name])[:3]
    return {
        "us": values.get("gpu__time_duration.sum", float("nan")) / 1e3,
        "dram_mb": sum(dram) / 1e6,
        "l2_mb": values.get("lts__t_bytes.sum", float("nan")) / 1e6,
        "issue": values.get("smsp__issue_active.avg.pct_of_peak_sustained_active"),
        "tensor": values.get("sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"),
        "conflicts": values.get("l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum"),
        "stalls": " ".join(f"{name}:{stalls[name]:.2f}" for name in most),
    }


_SAMPLE = '==PROF== Connected\n"ID","Kernel Name","dram__bytes_read.sum"\n"","","byte"\n' \
          '"0","k","1,234.5"\n==PROF== Disconnected\n'  # fmt: skip


def counters(text: str) -> list[dict[str, Any]]:
    """Read ncu's raw page: a line of names, one of units, then the launches."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    launches = []
    for values in itertools.islice(csv.DictReader(lines), 1, None):
        kept = {k: v for k, v in values.items() if k == "Kernel Name" or "__" in k}
        launches.append({k: _number(v) for k, v in kept.items()})
    return launches


def _number(text: str) -> Any:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text


@step
def sweep(_: str) -> None:
    """Unshipped variants: checked first, then timed beside the shipped ones."""

    top = ceilings()
    cases = model_cases(MAIN)
    for kernel in kernel_records("k80" if REHEARSE else "sweep"):
        for case in [c for c in cases if launch_of(kernel, c)][:1]:
            with finding(kernel.record.name):
                check_kernel(load_wide(kernel), kernel, case)
                timed = clock(launches_of(kernel, case, load_wide))
                report(kernel.record.name, timed, top, operator_work(case, kernel.record.dtype))


def load_wide(kernel: Any) -> Any:
    """Load the PTX with more shared memory than a plugin could have."""
    function, driver = load_as_aot(kernel), cuda_driver()
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    checked(driver.cuFuncSetAttribute(function, attribute, kernel.record.shared_bytes))
    return function
