"""The step that times mamba-ssm's own forward kernel beside ours, on the same inputs.

mamba-ssm scans sequences: our operator's plane becomes four of them, the directions stacked as
groups, with the step sizes at full width, as the ledger counts it. `before` and `after` are that
glue, in as few of PyTorch's kernels as we could; it is timed with the kernel and without.
"""

from __future__ import annotations

import ctypes
import json
import struct
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from cases import (
    DEVICE,
    FAILED,
    GUARD,
    HERE,
    MAIN,
    REHEARSE,
    SHORT,
    Case,
    Missing,
    checked,
    cuda_driver,
    draw_torch,
    exact,
    finding,
    judge,
    kernel_records,
    launch_of,
    load_as_aot,
    model_cases,
    row,
    step,
    wait,
)
from timings import BATCHES, ceilings, clock, launches_of, operator_work, report, rounds

from uino_deploy.benchmarks.ledger.mamba import Kernel, layout
from uino_deploy.tolerances import OPERATOR

FOLDER = HERE / ("mamba80" if REHEARSE else "mamba")


@dataclass(frozen=True)
class Sequences:
    """The operands that mamba-ssm's kernel takes, and where it writes.

    u, delta and out are [sequences, 4, channels, length] in scan order; b and c [sequences, 4,
    states, length] are parts of one array of `rows` rows; a, skip and bias are float32.
    """

    u: Any
    delta: Any
    b: Any
    c: Any
    a: Any
    skip: Any
    bias: Any
    out: Any
    last: Any
    rows: int


def visited(height: int, width: int) -> Any:
    """Return the cell that each direction visits at each step, [4, height * width]."""
    cells = torch.arange(height * width, device=DEVICE).reshape(height, width)
    forward = torch.stack([cells.flatten(), cells.T.flatten()])
    return torch.cat([forward, forward.flip(1)])


def before(x: Any, packed: Any, weight: Any, order: Any) -> tuple[Any, Any, Any]:
    """Return x and the projection in scan order, and the step sizes for every channel.

    Args:
        x: [sequences, height, width, channels].
        packed: [sequences, height, width, 4, rank + 2 * states], perhaps wider.
        weight: [4, channels, rank], in the type of x.
        order: `visited`.
    """
    count, _, _, channels = x.shape
    steps = order[None, :, None]
    planes = x.flatten(1, 2).mT[:, None].expand(-1, 4, -1, -1)
    u = planes.gather(-1, steps.expand(count, -1, channels, -1))
    rows = packed.flatten(1, 2).permute(0, 2, 3, 1)
    rows = rows.gather(-1, steps.expand(count, -1, packed.shape[-1], -1))
    return u, rows, torch.matmul(weight, rows[:, :, : weight.shape[2]])


def after(out: Any, back: Any, height: int, width: int) -> Any:
    """Return the kernel's output as our operator's: by cells, the directions summed."""
    count, _, channels, _ = out.shape
    steps = back.T[None, :, :, None].expand(count, -1, -1, channels)
    by_cells = out.permute(0, 3, 1, 2).gather(1, steps)
    return by_cells.view(count, height, width, 4, channels).sum(3)


@dataclass(frozen=True)
class Theirs:
    """A loaded kernel of mamba-ssm's: its function, and the record that the wheelhouse wrote."""

    function: Any
    record: dict[str, Any]

    def launch(self, on: Sequences) -> None:
        """Launch on PyTorch's current stream.

        The argument is an SSMParamsBase, field by field as the sdist's selective_scan.h has it.
        """
        count, _, channels, length = on.u.shape
        sizes, strides = layout(count, channels, on.a.shape[1], length, on.rows)
        tensors = (on.a, on.b, on.c, on.skip, on.u, on.delta, on.bias, on.out, on.last)
        if REHEARSE:
            for t in tensors:
                extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
                written = t is on.out or t is on.last
                cuda_driver().show(t.data_ptr(), extent * t.element_size(), written)
        pointers = [*(t.data_ptr() for t in tensors), 0, 0]
        raw = struct.pack("@7i3B20Q11Q", *sizes, 1, 1, 1, *strides, *pointers)
        argument = ctypes.create_string_buffer(raw, len(raw))
        block = (ctypes.c_uint64 * 1)(ctypes.addressof(argument))
        stream = 0 if REHEARSE else torch.cuda.current_stream().cuda_stream
        grid, threads = (count, 4 * channels, 1), (self.record["threads"], 1, 1)
        where = (*grid, *threads, self.record["shared_bytes"], stream, ctypes.addressof(block), 0)
        checked(cuda_driver().cuLaunchKernel(self.function, *where))


class Route:
    """One case on mamba-ssm's way: the operator's inputs, and the kernel's own operands."""

    def __init__(self, case: Case, dtype: str, seed: int) -> None:
        self.inputs = draw_torch(case, dtype, seed)
        self.x, self.packed, weight, bias, a, skip = self.inputs
        self.weight = weight.to(self.x.dtype)
        self.parameters = [t.flatten(0, 1) for t in (a, skip, bias)]
        self.order = visited(*self.x.shape[1:3])
        self.back = self.order.argsort(1)
        self.buffer = self.x.new_full((4 * self.x.numel() + 2 * GUARD,), float("nan"))
        self.prepared = self.prepare()

    def prepare(self) -> Sequences:
        """Return the kernel's operands; its output is full of NaN and guarded on both sides."""
        u, rows, delta = before(self.x, self.packed, self.weight, self.order)
        rank, states = self.weight.shape[2], self.parameters[0].shape[1]
        b, c = rows[:, :, rank : rank + 2 * states].split(states, 2)
        out = self.buffer[GUARD:-GUARD].view(u.shape)
        chunks = -(-u.shape[-1] // 2048)
        last = u.new_empty((u.shape[0], 4 * u.shape[2], chunks, 2 * states), dtype=torch.float32)
        return Sequences(u, delta, b, c, *self.parameters, out, last, rows.shape[2])

    def alone(self, theirs: Theirs) -> None:
        """Launch the kernel on operands prepared before."""
        theirs.launch(self.prepared)

    def whole(self, theirs: Theirs) -> Any:
        """Compute what our operator computes, from what it takes."""
        on = self.prepare()
        theirs.launch(on)
        return after(on.out, self.back, *self.x.shape[1:3])


def check(route: Route, theirs: Theirs, case: Case, dtype: str) -> None:
    """Hold the kernel to float64 on its own operands, and its glue to our operator's result.

    mamba-ssm rounds the step sizes to the operands' type and ours does not: with the glue, eight
    times the bound.
    """
    on, bound = route.prepared, OPERATOR[dtype].relative_l2
    theirs.launch(on)
    wait()
    values = judge([on.out], [exact_sequences(on)], dtype)
    if not (route.buffer[:GUARD].isnan().all() and route.buffer[-GUARD:].isnan().all()):
        values |= {"status": FAILED, "why": "wrote outside its output"}
    (expected,), got = exact(case, route.inputs), route.whole(theirs).double()
    error = ((got - expected).norm() / expected.norm()).item()
    if not error <= 8 * bound:
        values |= {"status": FAILED, "why": "with its glue it does not compute our operator"}
    values |= {"error_with_glue": error, "registers": theirs.record["registers"]}
    row(f"{SHORT[dtype]} {case.label}", **values)


def exact_sequences(on: Sequences) -> Any:
    """Return mamba's formula in float64 on the kernel's own operands."""
    u, delta, b, c = (t.double() for t in (on.u, on.delta, on.b, on.c))
    a, skip, bias = (t.double().unflatten(0, u.shape[1:3]) for t in (on.a, on.skip, on.bias))
    steps = torch.nn.functional.softplus(delta + bias[..., None])
    state, y = torch.zeros((), dtype=u.dtype, device=u.device), torch.empty_like(u)
    for t in range(u.shape[-1]):
        gain = (steps[..., t] * u[..., t])[..., None] * b[:, :, None, :, t]
        state = torch.exp(steps[..., t, None] * a) * state + gain
        y[..., t] = (state * c[:, :, None, :, t]).sum(-1)
    return y + skip[..., None] * u


def packed_kernels() -> dict[Kernel, Theirs]:
    """Load what the wheelhouse packed.

    Raises:
        Missing: it packed none; the message says why.
    """
    reason, found = FOLDER / "missing.txt", {}
    for path in sorted(FOLDER.glob("*.json")):
        record = json.loads(path.read_text())
        kernel = Kernel(*(record[key] for key in ("threads", "items", "even", "dtype")))
        module = checked(cuda_driver().cuModuleLoadData(path.with_suffix(".cubin").read_bytes()))
        function = checked(cuda_driver().cuModuleGetFunction(module, record["entry"].encode()))
        found[kernel] = Theirs(function, record)
    if not found:
        raise Missing(reason.read_text().strip() if reason.exists() else f"no {FOLDER.name} here")
    return found


@step
def mamba(_: str) -> None:
    """mamba-ssm's forward kernel: held to float64, then timed alone and with its glue; and ours."""
    torch.zeros(1, device=DEVICE)  # makes the context current
    theirs, top = packed_kernels(), ceilings()
    plans = [("float16", batch) for batch in BATCHES]
    plans += [] if REHEARSE else [("float32", 1), ("bfloat16", 1)]
    for dtype, batch in plans:
        for case in model_cases(MAIN, batch):
            few = not REHEARSE or case.shapes.get("x", (99,))[0] <= 4  # the executor is slow
            if case.operator.name == "SelectiveScan2d" and few:
                with finding(f"{SHORT[dtype]} {case.label}"), torch.inference_mode():
                    compare(case, dtype, theirs, top, first=batch == 1)


def compare(case: Case, dtype: str, theirs: dict[Kernel, Theirs], top: Any, first: bool) -> None:
    """Time both on inputs larger than the cache; a share is of our operator's roofline."""
    work, name = operator_work(case, dtype), f"{SHORT[dtype]} {case.label}"
    _, height, width, _ = case.shapes["x"]
    kernel = theirs[Kernel.for_length(height * width, dtype)]
    routes = [Route(case, dtype, seed) for seed in range(rounds(work[0]))]
    if first:
        check(routes[0], kernel, case, dtype)
    ours = [k for k in kernel_records() if k.record.dtype == dtype and launch_of(k, case)]
    timed = [clock(launches_of(k, case, load_as_aot)) for k in ours]
    report(f"ours {name}", min(timed, key=lambda one: one["ms"]), top, work)
    for how, call in (("alone", Route.alone), ("with glue", Route.whole)):
        report(
            f"mamba-ssm {how} {name}", clock([partial(call, r, kernel) for r in routes]), top, work
        )
