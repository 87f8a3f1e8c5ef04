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
    from uino_deploy.kernels.plugins.library import OPERATORS

    plane, d, n, r = (s.sequences, s.height, s.width), s.channels, s.states, s.rank
    shapes = {"x": (*plane, d), "dt": (*plane, 4, r), "b": (*plane, 4, n), "c": (*plane, 4, n)}
    shapes |= {"dt_weight": (4, d, r), "dt_bias": (4, d), "a": (4, d, n), "skip": (4, d)}
    return Case(label, OPERATORS["SelectiveScan2d"], {}, shapes)


def model_cases(preset: str, batch: int = 1, shots: int = 1) -> list[Case]:
    """Return the operators' calls of a preset's forward pass."""
    from uino_deploy.config import UinoConfig
    from uino_deploy.kernels.compiler.shapes import correlation_shape, scan_shapes

    config, where = UinoConfig.from_preset(preset), f"{preset} B{batch} K{shots}"
    cases = [correlation_case(f"{where} correlation", correlation_shape(config, batch, shots))]
    for s in dict.fromkeys(scan_shapes(config, batch, shots)):
        label = f"{where} scan {s.sequences}x{s.height}x{s.width}x{s.channels}"
        cases.append(scan_case(label, s))
    return cases


def ragged_cases() -> list[Case]:
    """Return small shapes with a remainder in every dimension, two shots, a shared support."""
    from uino_deploy.kernels.compiler.shapes import CorrelationShape, ScanShape

    cases = []
    for pool in (2, 3):
        s = CorrelationShape(2, 2, 2, 140, 80, 11, 13, pool)
        cases.append(correlation_case(f"ragged p{pool}", s))
        cases.append(correlation_case(f"ragged p{pool} one support", s, supports=1))
        one = CorrelationShape(2, 1, 2, 140, 80, 11, 13, pool)
        cases.append(correlation_case(f"ragged p{pool} one shot", one))
    for d, r in ((16, 2), (32, 2), (64, 4)):
        for plane in ((3, 9, 11), (19, 2, 5), (1, 9, 11), (17, 1, 13), (3, 13, 1)):
            label = "ragged {}x{}x{}x".format(*plane) + str(d)
            cases.append(scan_case(label, ScanShape(*plane, d, 4, r)))
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


def exact(case: Case, inputs: list[Any]) -> Any:
    """Return the operator's definition (OPS.md) in float64; not the project's own reference."""
    wide = [t.double() for t in inputs]
    return correlation64(*wide, **case.attributes) if case.attributes else scan64(*wide)


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


def scan64(x: Any, dt: Any, b: Any, c: Any, dt_weight: Any, dt_bias: Any, a: Any, skip: Any) -> Any:
    import torch

    cells = torch.arange(x[0, :, :, 0].numel(), device=x.device).reshape(x.shape[1:3])
    forward = torch.stack([cells.flatten(), cells.T.flatten()])
    order = torch.cat([forward, forward.flip(1)])
    shape, x, dt, b, c = x.shape, *(t.flatten(1, 2) for t in (x, dt, b, c))
    delta = torch.nn.functional.softplus(torch.einsum("stgr,gdr->stgd", dt, dt_weight) + dt_bias)
    y, every = torch.full_like(delta, torch.nan), torch.arange(4, device=x.device)
    state = torch.zeros(len(x), *a.shape, dtype=x.dtype, device=x.device)
    for visited in order.T:
        step, u = delta[:, visited, every], x[:, visited]
        gain = (step * u)[..., None] * b[:, visited, every][:, :, None]
        state = torch.exp(step[..., None] * a) * state + gain
        y[:, visited, every] = (state * c[:, visited, every][:, :, None]).sum(-1) + skip * u
    return y.reshape(*shape[:3], 4, shape[3])


def judge(got: Any, expected: Any, dtype: str, **values: Any) -> dict[str, Any]:
    """Return the errors and a status. A norm hides one wrong element, so the worst counts."""
    from uino_deploy.tolerances import OPERATOR

    bound, error = OPERATOR[dtype].relative_l2, (got.double() - expected).abs()
    scale = expected.norm() / expected.numel() ** 0.5
    relative = (error.norm() / expected.norm()).item()
    worst = (error / (expected.abs() + scale)).max().item()
    right = relative <= bound and worst <= 8 * bound  # NaN is neither
    return {"status": PASSED if right else FAILED, "error": relative, "worst": worst, **values}


# --- the driver


@cache
def cuda_driver() -> Any:
    """Return cuda-python's driver module, or the rehearsal's stand-in."""
    if REHEARSE:
        importlib.import_module("rehearsal").install([HERE / "k80"])
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


def launch(function: Any, plan: Any, inputs: list[int], out: int, stream: int = 0) -> None:
    """Launch with each argument at its own size, and no attributes set."""
    pointers = [ctypes.c_uint64(address) for address in inputs]
    scalars = [ctypes.c_int32(value) for value in plan.scalars]
    values = [*pointers, *scalars, ctypes.c_uint64(out)]
    block = (ctypes.c_uint64 * len(values))(*map(ctypes.addressof, values))
    shared = plan.kernel.record.shared_bytes
    where = (*plan.grid, *plan.kernel.record.block, shared, stream, ctypes.addressof(block), 0)
    checked(cuda_driver().cuLaunchKernel(function, *where))


def on_card(function: Any, plan: Any, inputs: list[Any], out: Any) -> None:
    """Launch on tensors, on PyTorch's current stream."""
    import torch

    if REHEARSE:
        for t in (*inputs, out):
            cuda_driver().show(t.data_ptr(), t.nbytes)
    stream = 0 if REHEARSE else torch.cuda.current_stream().cuda_stream
    launch(function, plan, [t.data_ptr() for t in inputs], out.data_ptr(), stream)


def wait() -> None:
    import torch

    if not REHEARSE:
        torch.cuda.synchronize()


def out_shape(case: Case) -> tuple[int, ...]:
    (size,) = case.operator.sizes(case.attributes, case.shapes)
    return size


def guarded(case: Case, like: Any) -> tuple[Any, Any]:
    """Return an output full of NaN, and the larger buffer full of NaN around it."""
    size = int(np.prod(out_shape(case)))
    buffer = like.new_full((size + 2 * GUARD,), float("nan"))
    return buffer[GUARD : GUARD + size].view(out_shape(case)), buffer


def check_kernel(function: Any, kernel: Any, case: Case) -> None:
    """Launch once on random inputs; check the output and the memory around it."""
    dtype, inputs = kernel.record.dtype, draw_torch(case, kernel.record.dtype)
    out, buffer = guarded(case, inputs[0])
    on_card(function, launch_of(kernel, case), inputs, out)
    wait()
    values = judge(out, exact(case, inputs), dtype, kernel=kernel.record.name)
    if not (buffer[:GUARD].isnan().all() and buffer[-GUARD:].isnan().all()):
        values |= {"status": FAILED, "why": "wrote outside its output"}
    row(f"{SHORT[dtype]} {kernel.record.config} {case.label}", **values)


def kernels_of(shard: str, folder: str = "") -> list[Any]:
    """Return the kernels of a shard "<kind> <dtype>"."""
    kind, dtype = shard.split()
    records = kernel_records(folder)
    return [k for k in records if kind in k.record.name and k.record.dtype == dtype]
