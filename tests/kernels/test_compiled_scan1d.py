"""selective_scan_fn's kernel as Triton compiles it for every architecture, and executed."""

from itertools import product

import pytest
import torch

from tests.kernels.executor import run
from uino_deploy.kernels.compiler.build import compile_variants
from uino_deploy.kernels.compiler.targets import ARCHITECTURES, oldest_cuda, target
from uino_deploy.kernels.compiler.variants import scan1d_variant
from uino_deploy.kernels.selective_scan import naive
from uino_deploy.tolerances import OPERATOR

BATCH, GROUPS, CHANNELS, LENGTH = 2, 2, 18, 37
EVERY_OPTION = ("skip", "gate", "bias", "softplus")
MAMBA = ("BC", EVERY_OPTION)


def variant(dtype, varying, options, states=4):
    return scan1d_variant(dtype, CHANNELS, states, LENGTH, varying=varying, options=options)


def compiled(arch, wanted):
    return compile_variants(target(arch, oldest_cuda(arch)), wanted)


def operands(dtype, varying, states):
    generator = torch.Generator().manual_seed(5)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    dim = GROUPS * CHANNELS
    plane, small = (BATCH, dim, LENGTH), (BATCH, GROUPS, states, LENGTH)
    narrow = lambda t: t.to(getattr(torch, dtype))  # noqa: E731
    return {
        "u": narrow(draw(*plane)),
        "delta": narrow(draw(*plane).abs() * 0.2),
        "A": -4 * torch.rand(dim, states, generator=generator),
        "B": narrow(draw(*small) if "B" in varying else draw(dim, states)),
        "C": narrow(draw(*small) if "C" in varying else draw(dim, states)),
        "D": draw(dim),
        "z": narrow(draw(*plane)),
        "delta_bias": draw(dim).abs() * 0.2,
    }


def launch(kernel, values, dtype, states):
    """Run the whole grid; the arguments that an option leaves out are null."""
    n = kernel.record["constants"]
    given = {"D": n["HAS_SKIP"], "z": n["HAS_GATE"], "delta_bias": n["HAS_BIAS"]}
    taken = {k: v for k, v in values.items() if given.get(k, True)}
    names = {"u": "u_ptr", "delta": "delta_ptr", "A": "a_ptr", "B": "b_ptr", "C": "c_ptr"}
    names |= {"D": "skip_ptr", "z": "z_ptr", "delta_bias": "bias_ptr"}
    arguments = {pointer: taken.get(name) for name, pointer in names.items()}
    arguments |= {"dim": GROUPS * CHANNELS, "groups": GROUPS, "length": LENGTH}
    outputs = {"out_ptr": (values["u"].shape, getattr(torch, dtype))}
    outputs["last_ptr"] = ((BATCH, GROUPS * CHANNELS, states), torch.float32)
    grid = (BATCH, GROUPS, -(-CHANNELS // n["BLOCK_D"]))
    made = run(kernel, grid, arguments, outputs)
    exact = {name: tensor.double() for name, tensor in taken.items()}
    right = naive.selective_scan_fn(**exact, delta_softplus=n["SOFTPLUS"], return_last_state=True)
    return zip((made["out_ptr"], made["last_ptr"]), right, strict=True)


def check(kernel, dtype, varying, states=4):
    bounds = (OPERATOR[dtype].relative_l2, OPERATOR["float32"].relative_l2)
    pairs = launch(kernel, operands(dtype, varying, states), dtype, states)
    for (got, right), bound in zip(pairs, bounds, strict=True):
        assert ((got.double() - right).norm() / right.norm()).item() <= bound, kernel.name


def test_what_mamba_asks_for_is_compiled_and_right():
    """B and C varying, with D, z, the bias and softplus, and without them."""
    cases = [("float32", *MAMBA), ("float16", *MAMBA), ("bfloat16", "BC", ())]
    kernels = compiled("sm_80", [variant(*case) for case in cases])
    for kernel, (dtype, varying, _) in zip(kernels, cases, strict=True):
        check(kernel, dtype, varying)


@pytest.mark.parametrize("arch", ["sm_75", "sm_90", "sm_120"])
def test_it_compiles_beyond_the_architecture_that_is_executed(arch):
    (kernel,) = compiled(arch, [variant("float16", *MAMBA)])
    assert kernel.record["arch"] == arch


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_combination_compiles_for_every_architecture(arch):
    types = [t for t in OPERATOR if t != "bfloat16" or arch != "sm_75"]
    options = [
        tuple(name for name, chosen in zip(EVERY_OPTION, flags, strict=True) if chosen)
        for flags in product((False, True), repeat=4)
    ]
    cases = [("float16", varying, some) for varying in ("BC", "B", "C", "") for some in options]
    cases += [(dtype, *MAMBA) for dtype in types if dtype != "float16"]
    kernels = compiled(arch, [variant(*case) for case in cases])
    for kernel, (dtype, varying, _) in zip(kernels, cases, strict=True):
        check(kernel, dtype, varying)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_mambas_own_sixteen_states(arch):
    (kernel,) = compiled(arch, [variant("float32", *MAMBA, states=16)])
    check(kernel, "float32", "BC", states=16)
