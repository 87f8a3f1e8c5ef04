"""Compiles the kernels of `test_triton.py` for one architecture: JSON on stdout.

This runs in a separate process: LLVM aborts on a target that it does not know.
"""

import json
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def product(
    q,
    s,
    n_q,
    n_s,
    depth,
    out,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Cosines of rows of q and s, the mean of neighbouring pairs of columns."""
    rows = tl.program_id(0) * M + tl.arange(0, M)
    columns = tl.program_id(1) * N + tl.arange(0, N)
    step = tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    of_q = tl.zeros((M,), tl.float32)
    of_s = tl.zeros((N,), tl.float32)
    for k in tl.range(0, depth, K, num_stages=STAGES):
        inside = (k + step)[None, :] < depth
        a = tl.load(
            q + rows[:, None] * depth + (k + step)[None, :],
            mask=(rows[:, None] < n_q) & inside,
            other=0.0,
        )
        b = tl.load(
            s + columns[:, None] * depth + (k + step)[None, :],
            mask=(columns[:, None] < n_s) & inside,
            other=0.0,
        )
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
        of_q += tl.sum(a.to(tl.float32) * a.to(tl.float32), 1)
        of_s += tl.sum(b.to(tl.float32) * b.to(tl.float32), 1)
    cosine = total / tl.maximum(tl.sqrt(of_q), 1e-6)[:, None]
    cosine = tl.maximum(cosine * tl.rsqrt(tl.maximum(of_s, 1e-12))[None, :], 0.0)
    pairs = tl.sum(tl.reshape(cosine, (M, N // 2, 2)), 2) / 2
    pair = tl.program_id(1) * (N // 2) + tl.arange(0, N // 2)
    width = n_s // 2
    inside = (rows[:, None] < n_q) & (pair[None, :] < width)
    tl.store(
        out + rows[:, None] * width + pair[None, :], pairs.to(out.dtype.element_ty), mask=inside
    )


@triton.jit
def plain_product(
    q,
    s,
    depth,
    out,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    STAGES: tl.constexpr,
    TURNED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """q times s, its tiles used by the product alone; s is [depth, N], or [N, depth] turned."""
    row, column, step = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    for k in tl.range(0, depth, K, num_stages=STAGES):
        a = tl.load(q + row[:, None] * depth + (k + step)[None, :])
        if TURNED:
            b = tl.trans(tl.load(s + column[:, None] * depth + (k + step)[None, :]))
        else:
            b = tl.load(s + (k + step)[:, None] * N + column[None, :])
        total = tl.dot(a, b, total, input_precision=PRECISION)
    tl.store(out + row[:, None] * N + column[None, :], total)


@triton.jit
def _then(first_decay, first, decay, state):
    return first_decay * decay, decay * first + state


@triton.jit
def scan(x, dt, a, b, c, length, y, D: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr):
    """A selective scan in chunks, with a parallel scan inside each."""
    sequence = tl.program_id(0)
    d = tl.arange(0, D)
    n = tl.arange(0, N)
    t = tl.arange(0, CHUNK)
    decay_rate = tl.load(a + d[:, None] * N + n[None, :])
    state = tl.zeros((D, N), tl.float32)
    for start in range(0, length, CHUNK):
        inside = (start + t < length)[:, None]
        row = (sequence * length + start + t)[:, None]
        x_t = tl.load(x + row * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        dt_t = tl.load(dt + row * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        delta = tl.where(dt_t > 20.0, dt_t, tl.log(1.0 + tl.exp(dt_t)))
        delta = tl.where(inside, delta, 0.0)
        b_t = tl.load(b + row * N + n[None, :], mask=inside, other=0.0).to(tl.float32)
        c_t = tl.load(c + row * N + n[None, :], mask=inside, other=0.0).to(tl.float32)
        decay = tl.exp(delta[:, :, None] * decay_rate[None, :, :])
        added = (delta * x_t)[:, :, None] * b_t[:, None, :]
        first = (t == 0)[:, None, None]
        added = tl.where(first, added + decay * state[None, :, :], added)
        _, states = tl.associative_scan((decay, added), 0, _then)
        y_t = tl.sum(states * c_t[:, None, :], 2)
        state = tl.sum(tl.where((t == CHUNK - 1)[:, None, None], states, 0.0), 0)
        tl.store(y + row * D + d[None, :], y_t.to(y.dtype.element_ty), mask=inside)


@triton.jit
def assorted(x, n, y, BLOCK: tl.constexpr):
    """Functions, integer arithmetic, split and join, flips and running sums."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < n, other=0.0, cache_modifier=".cg").to(tl.float32)
    even, odd = tl.split(tl.reshape(value, (BLOCK // 2, 2)))
    left = tl.sigmoid(even) + tl.floor(odd) + tl.exp2(even) + tl.erf(odd)
    right = tl.log2(tl.abs(odd) + 1) + tl.sqrt_rn(tl.abs(even)) + tl.ceil(odd)
    both = tl.reshape(tl.join(left, right), (BLOCK,))
    both = tl.cumsum(both, 0) - tl.max(both, 0) + tl.argmax(both, 0)
    whole = (i // 7) * 3 + (i % 5) - (i << 1) + (i >> 2) + (i ^ 3) + (i // n)
    both = tl.flip(both + whole.to(tl.float32), 0)
    tl.store(y + i, both.to(y.dtype.element_ty), mask=i < n, eviction_policy="evict_last")


def products(types: list[tuple[str, str]]) -> list:
    """The product for each (type, precision): the first in three tilings."""
    return [
        (
            f"product {kind} {precision} {m}x{n}x{k} {stages}",
            product,
            {"q": f"*{kind}", "s": f"*{kind}", "n_q": "i32", "n_s": "i32", "depth": "i32",
             "out": f"*{kind}"},
            {"M": m, "N": n, "K": k, "STAGES": stages, "PRECISION": precision},
            warps,
        )
        for i, (kind, precision) in enumerate(types)
        for m, n, k, stages, warps in ((64, 64, 32, 3, 4), (64, 32, 64, 1, 4), (32, 64, 32, 2, 2))
        if i == 0 or stages == 3
    ]  # fmt: skip


def plain_products() -> list:
    """Products of warp groups: tiles of every swizzling, either order of s, each type."""
    found = []
    for kind, n, k, turned in (
        ("fp16", 64, 64, True), ("fp16", 128, 64, False), ("bf16", 32, 32, True),
        ("bf16", 32, 32, False), ("fp16", 16, 16, True), ("fp16", 16, 16, False),
        ("fp32", 64, 32, True),
    ):  # fmt: skip
        signature = {"q": f"*{kind}", "s": f"*{kind}", "depth": "i32", "out": "*fp32"}
        constants = {"M": 128, "N": n, "K": k, "STAGES": 3, "TURNED": turned, "PRECISION": "tf32"}
        name = f"plain {kind} {n} {k} {'turned' if turned else 'straight'}"
        found.append((name, plain_product, signature, constants, 8))
    return found


def scans(kinds: list[str]) -> list:
    """The scan and the assorted functions for each type: the first in two tilings."""
    found = []
    for kind in kinds:
        for d, n, chunk, warps in ((32, 4, 32, 4), (8, 8, 16, 1)):
            signature = dict.fromkeys(("x", "dt", "a", "b", "c"), f"*{kind}") | {"a": "*fp32"}
            signature |= {"length": "i32", "y": f"*{kind}"}
            constants = {"D": d, "N": n, "CHUNK": chunk}
            if kind == kinds[0] or warps == 1:
                found.append((f"scan {kind} {d} {n} {chunk}", scan, signature, constants, warps))
        signature = {"x": f"*{kind}", "n": "i32", "y": f"*{kind}"}
        found.append((f"assorted {kind}", assorted, signature, {"BLOCK": 512}, 4))
    return found


def main(capability: int) -> None:
    """Compile what suits the architecture; write name -> PTX, shared bytes, threads."""
    types = [("fp16", "ieee")]
    if capability in (80, 120):
        types += [("bf16", "ieee"), ("fp32", "ieee"), ("fp32", "tf32"), ("fp32", "tf32x3")]
    kinds = ["fp16", "fp32", "bf16"] if capability in (80, 120) else ["fp16"]
    compiled = {}
    wanted = products(types) + scans(kinds)
    if capability == 90:
        wanted = products([("fp16", "ieee")]) + plain_products()
    for name, function, signature, constants, warps in wanted:
        hints = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values())
                 if kind.startswith("*")}  # fmt: skip
        if "depth" in signature:
            hints[(list(signature).index("depth"),)] = [["tt.divisibility", 16]]
        source = ASTSource(
            function, signature | dict.fromkeys(constants, "constexpr"), constants, hints
        )
        options = {"num_warps": warps, "num_stages": 3, "enable_fp_fusion": True}
        done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        compiled[name] = {
            "ptx": done.asm["ptx"],
            "shared": done.metadata.shared,
            "threads": 32 * done.metadata.num_warps,
        }
    sys.stdout.write(json.dumps(compiled))


if __name__ == "__main__":
    main(int(sys.argv[1]))
