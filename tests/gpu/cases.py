"""Common parts of the steps: findings, operators at concrete shapes, float64 results, launches."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "site"))
sys.path.append(str(HERE / "wheels"))  # packages that are not installed, for the card's Python only

PASSED, REHEARSED = "PASSED", "REHEARSED"
MISSING, FAILED = "MISSING", "FAILED"
DTYPES = ("float32", "float16", "bfloat16")
SHORT = dict(zip(DTYPES, ("fp32", "fp16", "bf16"), strict=True))
GUARD = 4096  # elements on either side of an output that must stay as they were

REHEARSE = "--rehearse" in sys.argv
DEVICE = "cpu" if REHEARSE else "cuda"
PRESETS = ("tiny",) if REHEARSE else ("vitb14", "vits14", "vitl14", "tiny")
MAIN = "tiny" if REHEARSE else "vitb14"

FUNCTIONS: dict[str, Callable[[str], None]] = {}


class Missing(Exception):
    """This machine lacks a tool that the step needs."""


def step(function: Callable[[str], None]) -> Callable[[str], None]:
    """Register a function of a shard's name as the step with the function's name."""
    FUNCTIONS[function.__name__] = function
    return function


def row(case: str, status: str = PASSED, **values: Any) -> None:
    """Record one finding; it survives if the process dies later."""
    status = REHEARSED if REHEARSE and status == PASSED else status
    with open(os.environ["FIRST_LIGHT_PART"], "a") as part:
        part.write(json.dumps({"case": case, "status": status, **values}, default=str) + "\n")


@contextmanager
def finding(case: str) -> Iterator[None]:
    """Record an error as this case's, and continue with the next one."""
    try:
        yield
    except (ModuleNotFoundError, Missing):
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"[:600]
        row(case, FAILED, error=text, log=traceback.format_exc()[-2000:])


# --- cases: an operator at concrete shapes, its inputs, its float64 result


@dataclass(frozen=True)
class Case:
    """One call of an operator."""

    label: str
    operator: Any
    attributes: dict[str, int]
    shapes: dict[str, tuple[int, ...]]


def correlation_case(label: str, s: Any, supports: int | None = None) -> Case:
    from uino_deploy.kernels.plugins.library import OPERATORS

    cells, sets = s.height * s.width, s.batch if supports is None else supports
    shapes = {
        "query": (s.batch, s.layers, s.n_query, s.channels),
        "support": (sets, s.shots, s.layers, cells, s.channels),
        "weight": (sets, s.shots, cells),
    }
    attributes = {"height": s.height, "width": s.width, "pool": s.pool}
    return Case(label, OPERATORS["Correlation4d"], attributes, shapes)


def scan_case(label: str, s: Any) -> Case:
    from uino_deploy.kernels.compiler.shapes import packed_width
    from uino_deploy.kernels.plugins.library import OPERATORS

    plane, d, n, r = (s.sequences, s.height, s.width), s.channels, s.states, s.rank
    shapes = {"x": (*plane, d), "packed": (*plane, 4, packed_width(r, n))}
    shapes |= {"dt_weight": (4, d, r), "dt_bias": (4, d), "a": (4, d, n), "skip": (4, d)}
    return Case(label, OPERATORS["SelectiveScan2d"], {}, shapes)


def volume_case(label: str, s: Any, cells: tuple[int, ...] | None = None) -> Case:
    """Return a prologue, an epilogue or an MLP; `cells` are S and the sides of both planes."""
    from uino_deploy.kernels.plugins.library import OPERATORS

    operator = next(o for o in OPERATORS.values() if o.kernel == s.op)
    shots, hq, wq, hs, ws = cells or (s.shots, s.query, s.query, s.support, s.support)
    d, width = s.channels, s.width
    planes = (shots * hs * ws, hq, wq) if s.plane == 0 else (shots * hq * wq, hs, ws)
    sizes = {
        "volume": (shots, hq, wq, hs, ws, d), "y": (*planes, d), "conv_weight": (d, 3, 3),
        "in_weight": (d, d), "gate_weight": (d, d), "weight1": (width, d), "bias1": (width,),
        "weight2": (d, width),
        "projection": (4, width, d) if operator.name == "ScanPrologue" else (d, d),
    }  # fmt: skip
    shapes = {tensor.name: sizes.get(tensor.name, (d,)) for tensor in operator.inputs}
    attributes = {"plane": s.plane} if operator.attributes else {}
    where, word = "x".join(map(str, shapes["volume"])), s.op.partition("_")[2]
    if attributes:
        word += f" {('query', 'support')[s.plane]}"
    return Case(f"{label} {word} {where}", operator, attributes, shapes)


def model_cases(preset: str, batch: int = 1, shots: int = 1) -> list[Case]:
    """Return the operators' calls of a preset's forward pass."""
    from uino_deploy.config import UinoConfig
    from uino_deploy.kernels.compiler.shapes import (
        correlation_shape,
        scan_shapes,
        volume_shapes,
    )

    config, where = UinoConfig.from_preset(preset), f"{preset} B{batch} K{shots}"
    cases = [correlation_case(f"{where} correlation", correlation_shape(config, batch, shots))]
    for s in dict.fromkeys(scan_shapes(config, batch, shots)):
        label = f"{where} scan {s.sequences}x{s.height}x{s.width}x{s.channels}"
        cases.append(scan_case(label, s))
    return cases + [volume_case(where, s) for s in volume_shapes(config, batch, shots)]


def ragged_cases() -> list[Case]:
    """Return small shapes with a remainder in every dimension, two shots, a shared support."""
    from uino_deploy.kernels.compiler.shapes import (
        CorrelationShape,
        ScanShape,
        VolumeShape,
        packed_width,
    )

    cases = []
    for pool in (2, 3):
        s = CorrelationShape(2, 2, 2, 140, 80, 11, 13, pool)
        cases.append(correlation_case(f"ragged p{pool}", s))
        cases.append(correlation_case(f"ragged p{pool} one support", s, supports=1))
        one = CorrelationShape(2, 1, 2, 140, 80, 11, 13, pool)
        cases.append(correlation_case(f"ragged p{pool} one shot", one))
    for d, r in ((16, 2), (32, 2), (64, 4)):
        for plane in ((3, 13, 20), (19, 2, 5), (1, 16, 17), (17, 1, 13), (3, 13, 1)):
            label = "ragged {}x{}x{}x".format(*plane) + str(d)
            cases.append(scan_case(label, ScanShape(*plane, d, 4, r)))
        for cells in ((2, 5, 7, 3, 4), (3, 1, 6, 5, 1)):
            for plane in (0, 1):
                for op, width in (("scan_prologue", packed_width(r, 4)), ("scan_epilogue", 0)):
                    s = VolumeShape(op, 0, 0, 0, d, width, plane)
                    cases.append(volume_case("ragged", s, cells))
            s = VolumeShape("norm_mlp", 0, 0, 0, d, 2 * d, 0)
            cases.append(volume_case("ragged", s, cells))
    return cases


def all_cases() -> list[Case]:
    """Return every preset's shapes at B=1 and at B=2 with K=2, and the ragged ones, once each."""
    cases = ragged_cases()
    for preset in PRESETS:
        cases += model_cases(preset)
        cases += [] if REHEARSE else model_cases(preset, 2, 2)
    return list({(c.operator.name, *c.shapes.values(), *c.attributes.values()): c for c in cases}
                .values())  # fmt: skip


def kernel_records(folder: str = "") -> list[Any]:
    """Return the compiled kernels of a folder, as the plugins read them."""
    import msgspec

    from uino_deploy.kernels.plugins.library import Kernel, Record

    place = HERE / (folder or ("k80" if REHEARSE else "kernels"))
    names = json.loads((place / "kernels.json").read_text())["kernels"]
    records = [msgspec.json.decode((place / f"{n}.json").read_bytes(), type=Record) for n in names]
    return [Kernel(record, place) for record in records]


def launch_of(kernel: Any, case: Case) -> Any:
    """Return the launch, or None if this kernel does not compute the case."""
    from uino_deploy.kernels.plugins.library import Launch

    operator, record = case.operator, kernel.record
    if record.op != operator.kernel:
        return None
    # A variant of the sweep has its shipped kernel's name and a suffix.
    configs = operator.configurations(case.attributes, case.shapes)
    if not any(f"{record.config}-".startswith(f"{config}-") for config in configs):
        return None
    grid = operator.blocks(case.attributes, record.constants, case.shapes)
    return Launch(kernel, grid, operator.numbers(case.attributes, case.shapes))


def draw(case: Case, dtype: str, normal: Callable[[tuple[int, ...]], Any]) -> list[Any]:
    """Draw the inputs, with negative decays and small steps; rounded by the caller."""
    inputs = {name: normal(shape) for name, shape in case.shapes.items()}
    if "a" in inputs:
        inputs["a"], inputs["dt_bias"] = -4 * abs(inputs["a"]), inputs["dt_bias"] - 3
    return list(zip(inputs.values(), case.operator.types(dtype), strict=False))


def draw_torch(case: Case, dtype: str, seed: int = 0) -> list[Any]:
    import torch

    generator = torch.Generator(DEVICE).manual_seed(seed)

    def normal(shape: tuple[int, ...]) -> Any:
        return torch.randn(shape, generator=generator, device=DEVICE)

    return [t.to(getattr(torch, kind)) for t, kind in draw(case, dtype, normal)]


def draw_numpy(case: Case, dtype: str, seed: int = 0) -> list[Any]:
    """Draw as `draw_torch` does, in numpy; bfloat16 as its bits in uint16."""
    from uino_deploy.ptx.floats import round_bf16

    normal = np.random.default_rng(seed).standard_normal
    drawn = draw(case, dtype, lambda shape: normal(shape, dtype=np.float32))
    return [round_bf16(a) if kind == "bfloat16" else a.astype(kind) for a, kind in drawn]


def exact(case: Case, inputs: list[Any]) -> list[Any]:
    """Return the operator's definition (OPS.md) in float64; not the project's own reference."""
    definitions = {
        "Correlation4d": correlation64,
        "ScanPrologue": prologue64,
        "SelectiveScan2d": scan64,
        "ScanEpilogue": epilogue64,
        "NormMlp": mlp64,
    }
    wide = [t.double() for t in inputs]
    return listed(definitions[case.operator.name](*wide, **case.attributes))


def listed(results: Any) -> list[Any]:
    return list(results) if isinstance(results, tuple) else [results]


def public(case: Case) -> Any:
    """Return the operator as PyTorch has it."""
    from uino_deploy import kernels

    return getattr(kernels, case.operator.kernel)


def norm64(values: Any, weight: Any, bias: Any) -> Any:
    centred = values - values.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def prologue64(volume: Any, scale: Any, shift: Any, into: Any, kernel: Any, bias: Any,
               projection: Any, plane: int) -> Any:  # fmt: skip
    inner = norm64(volume, scale, shift) @ into.T
    own = (1, 2) if plane == 0 else (3, 4)
    total = bias.expand_as(inner).clone()
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            moved = inner.roll((-down, -across), own)
            for axis, by in zip(own, (down, across), strict=True):  # what came in from behind
                if by:
                    moved.select(axis, -1 if by > 0 else 0).zero_()
            total += moved * kernel[:, down + 1, across + 1]
    x = total * total.sigmoid()
    x = x.movedim(own, (3, 4)).flatten(0, 2)
    return x, (x[..., None, None, :] @ projection.mT)[..., 0, :]


def epilogue64(y: Any, volume: Any, scale: Any, shift: Any, into: Any, out_scale: Any,
               out_shift: Any, projection: Any, plane: int) -> Any:  # fmt: skip
    shots, hq, wq, hs, ws, _ = volume.shape
    others = (hs, ws) if plane == 0 else (hq, wq)
    scanned = norm64(y, out_scale, out_shift).unflatten(0, (shots, *others))
    if plane == 0:
        scanned = scanned.movedim((3, 4), (1, 2))
    gate = norm64(volume, scale, shift) @ into.T
    return volume + (scanned * gate * gate.sigmoid()) @ projection.T


def mlp64(volume: Any, scale: Any, shift: Any, weight1: Any, bias1: Any, weight2: Any,
          bias2: Any) -> Any:  # fmt: skip
    hidden = norm64(volume, scale, shift) @ weight1.T + bias1
    return volume + (hidden * (1 + (hidden / 2**0.5).erf()) / 2) @ weight2.T + bias2


def correlation64(query: Any, support: Any, weight: Any, height: int, width: int, pool: int) -> Any:
    import torch
    from torch.nn import functional as F

    q, s = (t / t.norm(dim=-1, keepdim=True).clamp(min=1e-6) for t in (query, support))
    cosine = torch.einsum("blqd,bklsd->bklqs", q, s.expand(len(q), -1, -1, -1, -1))
    volume = cosine.relu() * weight[:, :, None, None]
    down, across = -(-height // pool), -(-width // pool)
    edge = (0, across * pool - width, 0, down * pool - height)

    def windows(planes: Any) -> Any:
        padded = F.pad(planes.reshape(*planes.shape[:-1], height, width), edge)
        return padded.reshape(*planes.shape[:-1], down, pool, across, pool).sum((-3, -1))

    return (windows(volume) / windows(torch.ones_like(volume[0, 0, 0, 0]))).flatten(-2)


def scan64(x: Any, packed: Any, dt_weight: Any, dt_bias: Any, a: Any, skip: Any) -> Any:
    import torch

    cells = torch.arange(x[0, :, :, 0].numel(), device=x.device).reshape(x.shape[1:3])
    forward = torch.stack([cells.flatten(), cells.T.flatten()])
    order = torch.cat([forward, forward.flip(1)])
    rank, states = dt_weight.shape[-1], a.shape[-1]
    rows = packed.flatten(1, 2)[..., : rank + 2 * states]
    shape, x, (dt, b, c) = x.shape, x.flatten(1, 2), rows.split((rank, states, states), -1)
    delta = torch.nn.functional.softplus(torch.einsum("stgr,gdr->stgd", dt, dt_weight) + dt_bias)
    y, every = torch.full_like(delta, torch.nan), torch.arange(4, device=x.device)
    state = torch.zeros(len(x), *a.shape, dtype=x.dtype, device=x.device)
    for visited in order.T:
        step, u = delta[:, visited, every], x[:, visited]
        gain = (step * u)[..., None] * b[:, visited, every][:, :, None]
        state = torch.exp(step[..., None] * a) * state + gain
        y[:, visited, every] = (state * c[:, visited, every][:, :, None]).sum(-1) + skip * u
    return y.sum(2).reshape(shape)


def judge(got: list[Any], expected: list[Any], dtype: str, **values: Any) -> dict[str, Any]:
    """Return the errors of the output that is worst, and a status."""
    each = [_judged(a, b, dtype) for a, b in zip(got, expected, strict=True)]
    return max(each, key=lambda one: (one["status"] == FAILED, one["error"])) | values


def _judged(got: Any, expected: Any, dtype: str) -> dict[str, Any]:
    """Judge one output. A norm hides one wrong element, so the worst counts."""
    from uino_deploy.tolerances import OPERATOR

    bound, error = OPERATOR[dtype].relative_l2, (got.double() - expected).abs()
    scale = expected.norm() / expected.numel() ** 0.5
    relative = (error.norm() / expected.norm()).item()
    worst = (error / (expected.abs() + scale)).max().item()
    right = relative <= bound and worst <= 8 * bound  # NaN is neither
    return {"status": PASSED if right else FAILED, "error": relative, "worst": worst}


# --- the driver


@cache
def cuda_driver() -> Any:
    """Return cuda-python's driver module, or the rehearsal's stand-in."""
    if REHEARSE:
        importlib.import_module("rehearsal").install([HERE / "k80", HERE / "mamba80"])
    return importlib.import_module("cuda.bindings.driver")


def checked(result: tuple[Any, ...]) -> Any:
    status, *values = result
    if int(status):
        raise RuntimeError(f"the driver says {status.name}")
    return values[0] if len(values) == 1 else values


def load_as_aot(kernel: Any) -> Any:
    """Load the PTX as TensorRT's AOT launcher does: text and NUL, compiled by the driver."""
    driver = cuda_driver()
    module = checked(driver.cuModuleLoadData(kernel.ptx().encode() + b"\0"))
    return checked(driver.cuModuleGetFunction(module, kernel.record.entry.encode()))


def load_cubin(kernel: Any) -> Any:
    """Load the cubin with the project's own launcher."""
    from uino_deploy.kernels.plugins import driver

    cuda_driver()
    return driver.load(kernel)


def launch(
    function: Any, plan: Any, inputs: list[int], outputs: list[int], stream: int = 0
) -> None:
    """Launch with each argument at its own size, and no attributes set."""
    given, taken = ([ctypes.c_uint64(a) for a in addresses] for addresses in (inputs, outputs))
    scalars = [ctypes.c_int32(value) for value in plan.scalars]
    values = [*given, *scalars, *taken]
    block = (ctypes.c_uint64 * len(values))(*map(ctypes.addressof, values))
    shared = plan.kernel.record.shared_bytes
    where = (*plan.grid, *plan.kernel.record.block, shared, stream, ctypes.addressof(block), 0)
    checked(cuda_driver().cuLaunchKernel(function, *where))


def on_card(function: Any, plan: Any, inputs: list[Any], outputs: list[Any]) -> None:
    """Launch on tensors, on PyTorch's current stream."""
    import torch

    if REHEARSE:
        for t in (*inputs, *outputs):
            cuda_driver().show(t.data_ptr(), t.nbytes)
    stream = 0 if REHEARSE else torch.cuda.current_stream().cuda_stream
    given, taken = ([t.data_ptr() for t in tensors] for tensors in (inputs, outputs))
    launch(function, plan, given, taken, stream)


def wait() -> None:
    import torch

    if not REHEARSE:
        torch.cuda.synchronize()


def out_shapes(case: Case) -> list[tuple[int, ...]]:
    sizes: list[tuple[int, ...]] = case.operator.sizes(case.attributes, case.shapes)
    return sizes


def guarded(case: Case, like: Any) -> tuple[list[Any], list[Any]]:
    """Return outputs full of NaN, and the larger buffers full of NaN around them."""
    shapes = out_shapes(case)
    counts = [int(np.prod(shape)) for shape in shapes]
    buffers = [like.new_full((count + 2 * GUARD,), float("nan")) for count in counts]
    inner = zip(buffers, counts, shapes, strict=True)
    return [b[GUARD : GUARD + count].view(shape) for b, count, shape in inner], buffers


def check_kernel(function: Any, kernel: Any, case: Case) -> None:
    """Launch once on random inputs; check the output and the memory around it."""
    dtype, inputs = kernel.record.dtype, draw_torch(case, kernel.record.dtype)
    outputs, buffers = guarded(case, inputs[0])
    on_card(function, launch_of(kernel, case), inputs, outputs)
    wait()
    values = judge(outputs, exact(case, inputs), dtype, kernel=kernel.record.name)
    if not all(b[:GUARD].isnan().all() and b[-GUARD:].isnan().all() for b in buffers):
        values |= {"status": FAILED, "why": "wrote outside its output"}
    row(f"{SHORT[dtype]} {kernel.record.config} {case.label}", **values)


def kernels_of(shard: str, folder: str = "") -> list[Any]:
    """Return the kernels of a shard "<kind> <dtype>"."""
    kind, dtype = shard.split()
    records = kernel_records(folder)
    return [k for k in records if kind in k.record.name and k.record.dtype == dtype]
