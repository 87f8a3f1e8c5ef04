"""The backward kernels as Triton compiles them, executed, against float64 gradients."""

import pytest
import torch

from tests.kernels.executor import run
from tests.kernels.test_backward_interpreted import NAMES, operands, right
from uino_deploy.kernels.compiler.build import compile_variants
from uino_deploy.kernels.compiler.shapes import ScanShape
from uino_deploy.kernels.compiler.targets import ARCHITECTURES, oldest_cuda, target
from uino_deploy.kernels.compiler.variants import scan_backward_variant
from uino_deploy.kernels.selective_scan import triton_kernel_backward
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
    grid = tiling.grid(sequences, channels)
    kind, plane = tensors[0].dtype, (sequences, height, width, 4)
    pointers = ("x", "dt", "b", "c", "dt_weight", "dt_bias", "a", "skip", "gradient")
    arguments = {f"{name}_ptr": t for name, t in zip(pointers, [*tensors, gradient], strict=True)}
    arguments |= {"sequences": sequences, "height": height, "width": width, "channels": channels}
    arguments |= {"dt_stride": rank, "b_stride": states, "c_stride": states}
    arguments["gradient_directions"] = 4
    size = triton_kernel_backward.states_size(tiling, sequences, height * width, channels, states)
    outputs = {
        "states_ptr": ((size,), torch.float32),
        "of_x_ptr": ((*plane, channels), kind),
        "of_dt_ptr": ((*plane, rank), kind),
        "of_b_ptr": ((*plane, states), kind),
        "of_c_ptr": ((*plane, states), kind),
        "of_parameters_ptr": ((grid[0], 4, channels, rank + states + 2), torch.float32),
    }
    made = run(kernel, grid, arguments, outputs)
    weight, a, bias, skip = made["of_parameters_ptr"].sum(0).split((rank, states, 1, 1), -1)
    of_x = made["of_x_ptr"].sum(3)
    small = [made[f"of_{name}_ptr"] for name in ("dt", "b", "c")]
    return of_x, *small, weight, bias[..., 0], a, skip[..., 0]


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
