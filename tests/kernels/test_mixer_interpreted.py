"""The kernels around the scan in Triton's interpreter, against float64 on the same inputs."""

import pytest
import torch

from tests.kernels.test_mixer_reference import epilogue_inputs, mlp_inputs, of_type, prologue_inputs
from uino_deploy.kernels.epilogue import naive as epilogue
from uino_deploy.kernels.epilogue.triton_kernel import scan_epilogue
from uino_deploy.kernels.mlp import naive as mlp
from uino_deploy.kernels.mlp.triton_kernel import norm_mlp
from uino_deploy.kernels.prologue import naive as prologue
from uino_deploy.kernels.prologue.triton_kernel import scan_prologue
from uino_deploy.tolerances import OPERATOR

pytestmark = pytest.mark.usefixtures("poisoned")

CELLS = (2, 3, 4, 2, 3)  # 144: two full blocks and a rest
TYPES = pytest.mark.parametrize("dtype", OPERATOR)
PLANES = pytest.mark.parametrize("plane", [0, 1], ids=["query", "support"])


def check(kernel, specification, tensors, *plane):
    made = kernel(*tensors, *plane)
    exact = specification(*(t.double() for t in tensors), *plane)
    pairs = zip(made, exact, strict=True) if isinstance(made, tuple) else [(made, exact)]
    for got, right in pairs:
        assert (got.shape, got.dtype) == (right.shape, tensors[0].dtype)
        bound = OPERATOR[str(got.dtype).removeprefix("torch.")].relative_l2
        assert (got.double() - right).norm() <= bound * right.norm()
    return made


@TYPES
@PLANES
def test_prologue(plane, dtype):
    tensors = of_type(prologue_inputs(16, 8, CELLS), dtype)
    check(scan_prologue, prologue.scan_prologue, tensors, plane)


@TYPES
@PLANES
def test_epilogue(plane, dtype):
    tensors = of_type(epilogue_inputs(plane, 16, CELLS), dtype)
    check(scan_epilogue, epilogue.scan_epilogue, tensors, plane)


@TYPES
def test_mlp(dtype):
    check(norm_mlp, mlp.norm_mlp, of_type(mlp_inputs(16, 32, CELLS), dtype))


@pytest.mark.parametrize("channels", [3, 24])
def test_channels_off_the_powers_of_two(channels):
    check(scan_prologue, prologue.scan_prologue, of_type(prologue_inputs(channels), "float32"), 0)
    tensors = of_type(epilogue_inputs(1, channels), "float32")
    check(scan_epilogue, epilogue.scan_epilogue, tensors, 1)
    check(norm_mlp, mlp.norm_mlp, of_type(mlp_inputs(channels, 5), "float32"))


def test_non_contiguous_inputs_are_copied():
    tensors = of_type(mlp_inputs(), "float32")
    check(norm_mlp, mlp.norm_mlp, [t.mT.contiguous().mT if t.ndim > 1 else t for t in tensors])


def test_a_large_mean_does_not_cancel():
    tensors = of_type(mlp_inputs(16, 32), "float32")
    tensors[0] += 100.0
    check(norm_mlp, mlp.norm_mlp, tensors)


def test_nothing_in_nothing_out():
    tensors = of_type(prologue_inputs(cells=(0, 3, 4, 2, 5)), "float32")
    assert [t.numel() for t in scan_prologue(*tensors, 0)] == [0, 0]
    assert norm_mlp(*of_type(mlp_inputs(cells=(0, 3, 4, 2, 5)), "float32")).numel() == 0


@PLANES
def test_a_nan_stays_in_its_neighbourhood(plane):
    tensors = of_type(prologue_inputs(16, 8, CELLS), "float32")
    tensors[0][1, 1, 1, 1, 1, 3] = float("nan")
    x, packed = scan_prologue(*tensors, plane)
    right, _ = prologue.scan_prologue(*tensors, plane)
    assert torch.equal(x.isnan(), right.isnan())
    assert right.isnan().any()
    assert torch.equal(packed.isnan().flatten(3).all(-1), right.isnan().all(-1))


# SiLU far below zero: infinity, whose inverse is the right zero.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")
def test_rows_wider_than_a_product_go_in_blocks():
    cells = (1, 2, 2, 1, 3)
    check(norm_mlp, mlp.norm_mlp, of_type(mlp_inputs(72, 40, cells), "float16"))
    check(
        scan_prologue, prologue.scan_prologue, of_type(prologue_inputs(72, 8, cells), "float16"), 0
    )
    check(
        scan_epilogue, epilogue.scan_epilogue, of_type(epilogue_inputs(0, 72, cells), "float16"), 0
    )
