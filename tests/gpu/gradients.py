"""The operators' gradients on a card: correctness, launches, time and memory.

`python tests/gpu/gradients.py [--quick] [WORD...]` writes one JSON line per case and a verdict, and
exits with 1 if a gradient is wrong. Words, such as scan2d float16, select the cases that have them
all; --quick the small ones. Needs torch with CUDA and Triton, no pytest. Most of the time goes into
compiling.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from uino_deploy.benchmarks.runners.plain_torch import in_steps, plane_in_steps, summed_at_cells
from uino_deploy.kernels import correlation4d, selective_scan2d, selective_scan_fn
from uino_deploy.kernels.compiler.shapes import packed_width
from uino_deploy.kernels.correlation import naive as correlation_naive
from uino_deploy.kernels.selective_scan import naive as scan_naive
from uino_deploy.tolerances import OPERATOR

# (sequences, height, width, channels, states, rank): those of vitb14, and ragged ones.
PLANES = [(49, 37, 37, 32, 4, 2), (1369, 7, 7, 32, 4, 2), (16, 37, 37, 64, 4, 4),
          (1369, 4, 4, 64, 4, 4)]  # fmt: skip
RAGGED = [(3, 5, 9, 19, 3, 2), (7, 3, 2, 80, 2, 1)]
DTYPES = ("float32", "float16", "bfloat16")


def draw(*size: int) -> torch.Tensor:
    """Return normal float32 numbers on the card."""
    return torch.randn(*size, device="cuda")


def say(line: str) -> None:
    """Write a line at once, so that an interrupted run has reported its findings."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def plane(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the scan's operands."""
    s, h, w, d, n, r = shape
    packed = draw(s, h, w, 4, packed_width(r, n)).to(dtype)
    parameters = [draw(4, d, r), draw(4, d) - 2, -draw(4, d, n).abs() - 0.1, draw(4, d)]
    return [draw(s, h, w, d).to(dtype), packed, *parameters]


def sequence(dtype: torch.dtype, of_b: str) -> list[torch.Tensor]:
    """Return operands of `selective_scan_fn`; mamba's sixteen states once: slow to compile."""
    batch, dim, length = 2, 96, 300
    states = 16 if (of_b, dtype) == ("one", torch.float16) else 4
    small = {"one": (batch, states, length), "two": (batch, 2, states, length)}
    small["constant"] = (dim, states)
    own = [draw(batch, dim, length), draw(batch, dim, length)]
    rest = [draw(*small[of_b]), draw(batch, states, length), draw(batch, dim, length)]
    u, delta, b, c, z = (t.to(dtype) for t in own + rest)
    return [u, delta, -draw(dim, states).abs() - 0.1, b, c, draw(dim), z, draw(dim) - 2]


def tokens(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the correlation's operands."""
    batch, shots, layers, n_query, n_support, channels = shape
    query = draw(batch, layers, n_query, channels).to(dtype)
    support = draw(1, shots, layers, n_support, channels).to(dtype)
    weight = draw(1, shots, n_support).to(dtype)
    return [query, support, weight.masked_fill(at_the_corner(query, support), 0.0)]


def at_the_corner(query: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
    """Tell which support tokens [1, K, Ns] have a cosine so near zero that rounding sets its sign.

    The gradient jumps there: of 11 million cosines of vitb14 one or two fall on the other side in
    float32, and each moves the gradient by up to 2e-4. Weighted by zero, they move nothing.
    """
    q, s = (torch.nn.functional.normalize(t.double(), dim=-1) for t in (query, support))
    cosine = torch.einsum("blqd,bklsd->bklqs", q, s.expand(len(q), -1, -1, -1, -1))
    return (cosine.abs() < 1e-6).any(dim=3).any(dim=2).any(dim=0, keepdim=True)


def gradients(
    function: Callable[..., Any], operands: list[torch.Tensor], kind: torch.dtype
) -> Callable[[], Any]:
    """Return a function of the operands' gradients, for a result's gradient rounded to `kind`."""
    inputs = [t.detach().requires_grad_() for t in operands]
    out = function(*inputs)
    torch.manual_seed(1)
    weight = draw(*out.shape).to(kind).to(out.dtype)
    return lambda: torch.autograd.grad(out, inputs, weight, retain_graph=True)


def judge(name: str, function: Any, reference: Any, operands: list[torch.Tensor]) -> bool:
    """Compare all gradients with float64's, count launches, time 20 runs; print a line."""
    kind = operands[0].dtype
    run = gradients(function, operands, kind)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, began = torch.cuda.memory_allocated(), time.perf_counter()
    got = run()
    torch.cuda.synchronize()
    first = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() - before
    again = run()
    equal = all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    expected = gradients(reference, [t.double() for t in operands], kind)()
    errors, wrong = [], []
    for index, (mine, exact) in enumerate(zip(got, expected, strict=True)):
        error = float((mine.double() - exact).norm() / exact.norm())
        errors.append(float(f"{error:.2e}"))
        bound = OPERATOR[str(mine.dtype).removeprefix("torch.")].relative_l2
        if not error <= bound:
            wrong.append(index)
    del expected
    document = {"case": name, "status": "FAILED" if wrong or not equal else "PASSED"}
    document |= {"errors": errors, "wrong": wrong, "same_twice": equal}
    document |= {"launches": launches(run), "ms": timed(run), "first_s": round(first, 1)}
    document["peak_mb"] = round(peak / 1e6, 1)
    say(json.dumps(document))
    return not wrong and equal


def launches(run: Callable[[], Any]) -> int:
    """Count the kernels of one backward."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    on_card = [e for e in profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    return sum(e.count for e in on_card if not e.key.startswith("Mem"))


def timed(run: Callable[[], Any], count: int = 20) -> float:
    """Return the median of `count` backward passes in ms."""
    times = []
    for _ in range(count):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return round(sorted(times)[count // 2], 4)


def cases(quick: bool) -> Any:
    """Yield (name, function, reference, operands)."""
    for dtype in DTYPES:
        kind = getattr(torch, dtype)
        for shape in RAGGED + ([] if quick else PLANES):
            yield (f"scan2d {shape} {dtype}", selective_scan2d, scan_naive.selective_scan2d,
                   plane(shape, kind))  # fmt: skip
        for of_b in ("one", "two", "constant"):
            one = lambda *t: selective_scan_fn(*t, delta_softplus=True)  # noqa: E731
            right = lambda *t: scan_naive.selective_scan_fn(*t, delta_softplus=True)  # noqa: E731
            yield f"scan_fn B {of_b} {dtype}", one, right, sequence(kind, of_b)
        big = [((1, 1, 6, 1369, 1369, 768), 37, 37, 3)]
        for shape, height, width, pool in [((2, 2, 2, 70, 63, 40), 9, 7, 2)] + big * (not quick):
            fixed = (height, width, pool)
            mine = lambda *t, fixed=fixed: correlation4d(*t, *fixed)  # noqa: E731
            right = lambda *t, fixed=fixed: correlation_naive.correlation4d(*t, *fixed)  # noqa: E731
            yield f"correlation {shape} {dtype}", mine, right, tokens(shape, kind)


class _Recurrence(torch.autograd.Function):
    """The recurrence state[t] = decay[t] * state[t - 1] + inputs[t] along axis 0, from zero."""

    @staticmethod
    def forward(ctx: Any, decay: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        states = inputs.clone()
        for t in range(1, len(states)):
            states[t].addcmul_(decay[t], states[t - 1])
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        decay, states = ctx.saved_tensors
        of_inputs = gradient.clone()
        for t in range(len(states) - 1, 0, -1):
            of_inputs[t - 1].addcmul_(decay[t], of_inputs[t])
        of_decay = torch.zeros_like(decay)
        torch.mul(of_inputs[1:], states[:-1], out=of_decay[1:])
        return of_decay, of_inputs


def unfused_scan(
    x: torch.Tensor,
    packed: torch.Tensor,
    dt_weight: torch.Tensor,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    skip: torch.Tensor,
) -> torch.Tensor:
    """Scan a plane as PyTorch users write it: all but the recurrence for all steps at once."""
    x_t = plane_in_steps(x.float())
    dt, inputs, outputs = scan_naive.parts(in_steps(packed.float()), dt_weight, A)
    delta = F.softplus(torch.einsum("tsgr,gdr->tsgd", dt, dt_weight) + dt_bias)
    decay = torch.exp(delta[..., None] * A)  # [T, S, 4, D, N]
    states = _Recurrence.apply(  # type: ignore[no-untyped-call] # torch leaves it untyped
        decay, (delta * x_t)[..., None] * inputs[:, :, :, None, :]
    )
    y = (states @ outputs[..., None])[..., 0] + skip * x_t
    return summed_at_cells(y, *x.shape[1:3]).to(x.dtype)


def main() -> int:
    """Check every case; then time the unfused gradient for comparison."""
    torch.manual_seed(0)
    say(json.dumps({"card": torch.cuda.get_device_name(), "torch": torch.__version__}))
    right = True
    words = [word for word in sys.argv[1:] if word != "--quick"]
    for name, function, reference, operands in cases("--quick" in sys.argv):
        if not all(word in name.split() for word in words):
            continue
        try:
            right &= judge(name, function, reference, operands)
        except Exception as error:  # the other cases still count
            right = False
            text = f"{type(error).__name__}: {error}"[-800:]
            say(json.dumps({"case": name, "status": "FAILED", "error": text}))
    if set(words) <= {"scan2d", "float16"}:
        inputs = [t.detach().requires_grad_() for t in plane(PLANES[0], torch.float16)]

        def unfused() -> Any:
            return torch.autograd.grad(unfused_scan(*inputs).sum(), inputs)

        document = {"launches": launches(unfused), "ms": timed(unfused, 3)}
        say(json.dumps({"case": f"unfused {PLANES[0]} float16", **document}))
    say("PASSED" if right else "FAILED")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
