"""The backward kernels as Triton compiles them, executed, against float64 gradients."""

import pytest
import torch

from tests.kernels.executor import UnsupportedPtx, run
from tests.kernels.test_backward_interpreted import NAMES, operands, right, sequence, tokens
from uino_deploy.kernels.compiler.build import compile_variants
from uino_deploy.kernels.compiler.shapes import ScanShape
from uino_deploy.kernels.compiler.targets import ARCHITECTURES, oldest_cuda, target
from uino_deploy.kernels.compiler.variants import (
    correlation_backward_variant,
    scan1d_variant,
    scan_backward_variant,
)
from uino_deploy.kernels.selective_scan import naive, triton_kernel_backward
from uino_deploy.tolerances import OPERATOR

# The four scans of the presets, (sequences, height, width, channels, states, rank): they choose the
# variant, which then runs on two chunks or two groups with a rest.
SHAPES = {
    "parallel 32": ScanShape(49, 37, 37, 32, 4, 2),
    "serial 32": ScanShape(1369, 7, 7, 32, 4, 2),
    "parallel 64": ScanShape(16, 37, 37, 64, 4, 4),
    "serial 64": ScanShape(1369, 4, 4, 64, 4, 4),
}


def compiled(arch, cases):
    wanted = [scan_backward_variant(SHAPES[name], dtype) for name, dtype in cases]
    return compile_variants(target(arch, oldest_cuda(arch)), wanted)


def launch(kernel, tensors, gradient):
    """Do what `selective_scan2d_backward` does, with the kernel launched on the executor."""
    n = kernel.record["constants"]
    sequences, height, width, channels = tensors[0].shape
    states, rank = n["N"], n["R"]
    tiling = triton_kernel_backward.Tiling(
        n["PARALLEL"], n["ROWS"], n["STEPS"], n["BLOCK_D"], kernel.record["warps"]
    )
    grid = triton_kernel_backward.grid_of(tiling, sequences, channels)
    kind, plane = tensors[0].dtype, (sequences, height, width, 4)
    pointers = ("x", "packed", "dt_weight", "dt_bias", "a", "skip", "gradient")
    arguments = {f"{name}_ptr": t for name, t in zip(pointers, [*tensors, gradient], strict=True)}
    arguments |= {"sequences": sequences, "height": height, "width": width, "channels": channels}
    size = triton_kernel_backward.states_size(tiling, sequences, height * width, channels, states)
    outputs = {
        "states_ptr": ((size,), torch.float32),
        "of_x_ptr": ((*plane, channels), kind),
        "of_packed_ptr": ((*plane, n["P"]), kind),
        "of_parameters_ptr": ((grid[0], 4, channels, rank + states + 2), torch.float32),
    }
    made = run(kernel, grid, arguments, outputs)
    weight, a, bias, skip = made["of_parameters_ptr"].sum(0).split((rank, states, 1, 1), -1)
    of_x = made["of_x_ptr"].sum(3)
    return of_x, made["of_packed_ptr"], weight, bias[..., 0], a, skip[..., 0]


def check(kernel):
    n, dtype = kernel.record["constants"], getattr(torch, kernel.record["dtype"])
    plane = (1, 5, 9) if n["PARALLEL"] else (9, 2, 3)
    tensors, gradient = operands((*plane, n["BLOCK_D"], n["R"], n["N"]), dtype)
    got = launch(kernel, tensors, gradient)
    for name, mine, exact in zip(NAMES, got, right(tensors, gradient), strict=True):
        bound = OPERATOR[str(mine.dtype).removeprefix("torch.")].relative_l2
        assert (mine.double() - exact).norm() <= bound * exact.norm(), f"{kernel.name} {name}"


def test_it_is_compiled_and_right():
    for kernel in compiled("sm_80", [("parallel 32", "float16"), ("serial 32", "float32")]):
        check(kernel)
        assert not kernel.record["spill_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_variant_for_every_architecture(arch):
    types = [t for t in OPERATOR if t != "bfloat16" or arch != "sm_75"]
    for kernel in compiled(arch, [(name, dtype) for name in SHAPES for dtype in types]):
        check(kernel)


# --- selective_scan_fn

CHANNELS, LENGTH, STATES = 6, 21, 3  # those of the interpreter's test, all in one group


def sequence_variant(dtype, varying, options):
    shape = (dtype, CHANNELS, STATES, LENGTH)
    return scan1d_variant(*shape, varying=varying, options=options, backward=True)


def launch_sequence(kernel, values, gradient, of_last):
    """Do what `selective_scan_fn_backward` does for one group of one block of channels."""
    n, kind = kernel.record["constants"], values[0].dtype
    pointers = ("u", "delta", "a", "b", "c", "skip", "z", "bias", "gradient", "of_last")
    arguments = {
        f"{name}_ptr": t for name, t in zip(pointers, [*values, gradient, of_last], strict=True)
    }
    arguments |= {"dim": CHANNELS, "groups": 1, "length": LENGTH, "of_z_ptr": None}
    arguments |= {"of_b_ptr": None, "of_c_ptr": None}
    chunks = -(-LENGTH // (n["ROWS"] * n["STEPS"]))
    plane, small = (2, CHANNELS, LENGTH), (2, 1, STATES, LENGTH)
    outputs = {
        "states_ptr": ((2 * chunks * STATES * n["BLOCK_D"],), torch.float32),
        "of_u_ptr": (plane, kind),
        "of_delta_ptr": (plane, kind),
        "of_parameters_ptr": ((2, CHANNELS, 3 * STATES + 2), torch.float32),
    }
    outputs |= {"of_z_ptr": (plane, kind)} if n["HAS_GATE"] else {}
    outputs |= {"of_b_ptr": (small, torch.float32)} if n["B_VARIES"] else {}
    outputs |= {"of_c_ptr": (small, torch.float32)} if n["C_VARIES"] else {}
    made = run(kernel, (2, 1, 1), arguments, outputs)
    sizes = (STATES, STATES, STATES, 1, 1)
    a, b, c, skip, bias = made["of_parameters_ptr"].sum(0).split(sizes, -1)
    b, c = made.get("of_b_ptr", b), made.get("of_c_ptr", c)
    found = [made["of_u_ptr"], made["of_delta_ptr"], a, b, c, skip[:, 0]]
    return [*found, made.get("of_z_ptr"), bias[:, 0]]


def check_sequence(kernel):
    n = kernel.record["constants"]
    layouts = ["1 groups" if n[f"{name}_VARIES"] else "constant" for name in "BC"]
    given = {"D": n["HAS_SKIP"], "z": n["HAS_GATE"], "delta_bias": n["HAS_BIAS"]}
    chosen = [name for name, taken in given.items() if taken]
    values, _ = sequence(*layouts, chosen, getattr(torch, kernel.record["dtype"]))
    exact = [None if t is None else t.double().requires_grad_() for t in values]
    out, last = naive.selective_scan_fn(*exact, n["SOFTPLUS"], return_last_state=True)
    gradient, of_last = torch.randn(out.shape).to(values[0].dtype), torch.randn(last.shape)
    inputs = [t for t in exact if t is not None]
    right = iter(torch.autograd.grad((out, last), inputs, (gradient.double(), of_last.double())))
    for mine, operand in zip(
        launch_sequence(kernel, values, gradient, of_last), exact, strict=True
    ):
        if operand is not None:
            expected = next(right)
            bound = OPERATOR[str(mine.dtype).removeprefix("torch.")].relative_l2
            assert (mine.double() - expected).norm() <= bound * expected.norm(), kernel.name


EVERY_OPTION = ("skip", "gate", "bias", "softplus")


def test_the_sequences_is_compiled_and_right():
    cases = [("float32", "BC", EVERY_OPTION), ("bfloat16", "C", ())]
    wanted = [sequence_variant(*case) for case in cases]
    for kernel in compile_variants(target("sm_80", "12.6"), wanted):
        check_sequence(kernel)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_combination_of_the_sequences_for_every_architecture(arch):
    some = [(), *((name,) for name in EVERY_OPTION), EVERY_OPTION]
    cases = [("float16", varying, options) for varying in ("BC", "B", "C", "") for options in some]
    cases += [("float32", "BC", EVERY_OPTION)]
    cases += [("bfloat16", "BC", EVERY_OPTION)] if arch != "sm_75" else []
    wanted = [sequence_variant(*case) for case in cases]
    for kernel in compile_variants(target(arch, oldest_cuda(arch)), wanted):
        check_sequence(kernel)


# --- Correlation4d: the kernel's part of the gradient


def check_correlation(kernel):
    batch, shots, layers, n_query, height, width = 1, 2, 1, 70, 9, 8
    pool, dtype = kernel.record["constants"]["POOL"], getattr(torch, kernel.record["dtype"])
    tensors = tokens((batch, False, shots, layers, n_query, height, width, 32), dtype)
    query, support, weight = (t.double() for t in tensors)
    windows = -(-height // pool) * -(-width // pool)
    gradient = torch.randn(batch, shots, layers, n_query, windows).to(dtype)
    arguments = {"query_ptr": tensors[0], "support_ptr": tensors[1], "weight_ptr": tensors[2]}
    arguments |= {"gradient_ptr": gradient, "layers": layers, "shots": shots, "n_query": n_query}
    arguments |= {"channels": 32, "height": height, "width": width}
    arguments |= {"support_batches": batch, "weight_batches": batch}
    plane, tokens_ = (batch, shots, layers), height * width
    outputs = {
        "of_cosine_ptr": ((*plane, n_query, tokens_), dtype),
        "of_weight_ptr": ((2, *plane, tokens_), torch.float32),
        "along_queries_ptr": ((2, *plane, tokens_), torch.float32),
        "along_supports_ptr": ((2, *plane, n_query), torch.float32),
    }
    made = run(kernel, (4, layers, batch * shots), arguments, outputs)
    unit = torch.nn.functional.normalize
    cosine = (unit(query, dim=-1)[:, None] @ unit(support, dim=-1).mT).requires_grad_()
    weight.requires_grad_()
    volume = cosine.clamp(min=0) * weight[:, :, None, None]
    pooled = torch.nn.functional.avg_pool2d(
        volume.reshape(-1, 1, height, width), pool, ceil_mode=True, count_include_pad=False
    ).reshape(*plane, n_query, -1)
    of_cosine, of_weight = torch.autograd.grad(pooled, (cosine, weight), gradient.double())
    along = (of_cosine * cosine).detach()
    pairs = [(made["of_cosine_ptr"], of_cosine, kernel.record["dtype"])]
    pairs += [(made["of_weight_ptr"].sum((0, 3)), of_weight, "float32")]
    pairs += [(made["along_queries_ptr"].sum(0), along.sum(-2), "float32")]
    pairs += [(made["along_supports_ptr"].sum(0), along.sum(-1), "float32")]
    for got, exact, kind in pairs:
        assert (got.double() - exact).norm() <= OPERATOR[kind].relative_l2 * exact.norm()


def test_the_correlations_is_compiled_and_right():
    wanted = [correlation_backward_variant(*case) for case in [(3, "float16"), (2, "float32")]]
    for kernel in compile_variants(target("sm_80", "12.6"), wanted):
        check_correlation(kernel)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_correlations_for_every_architecture(arch):
    types = [t for t in OPERATOR if t != "bfloat16" or arch != "sm_75"]
    wanted = [correlation_backward_variant(pool, t) for pool in (1, 3) for t in types]
    for kernel in compile_variants(target(arch, oldest_cuda(arch)), wanted):
        try:
            check_correlation(kernel)
        except UnsupportedPtx:  # wgmma and tcgen05: assembled, not executed
            assert arch in ("sm_90", "sm_100", "sm_103", "sm_110")
