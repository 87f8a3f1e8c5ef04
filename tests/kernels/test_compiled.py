"""The compiled kernels: what ptxas says of them, what they compute and what they move.

The gates run on the float16 variants of vitb14 for the Jetson Orin; the other types and
architectures are marked slow.
"""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from uino_deploy.errors import BuildError
from uino_deploy.kernels import ptx
from uino_deploy.kernels.compiler.build import PLUGIN_SHARED_BYTES, compile_target, write
from uino_deploy.kernels.compiler.shapes import CorrelationShape, ScanShape
from uino_deploy.kernels.compiler.targets import ARCHITECTURES, target
from uino_deploy.kernels.compiler.variants import (
    grid_of,
    preset_variants,
    scalars_of,
    scan_tiling,
)
from uino_deploy.kernels.correlation import naive as correlation_naive
from uino_deploy.kernels.ledger import traffic, unfused
from uino_deploy.kernels.ledger.disassembly import instruction_mix
from uino_deploy.kernels.ledger.report import preset_shapes, variant_for
from uino_deploy.kernels.selective_scan import naive as scan_naive
from uino_deploy.tolerances import OPERATOR

CORRELATION, *SCANS = preset_shapes("vitb14")
EXECUTABLE = ["sm_80", "sm_86", "sm_87", "sm_89", "sm_120"]
TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def compiled(arch, names=None, presets=("vitb14",)):
    cuda = "12.6" if ARCHITECTURES[arch][1] <= 85 else "13.0"
    kernels = compile_target(target(arch, cuda), list(presets), names)
    return {k.name.removesuffix(f"-{arch}"): k for k in kernels}


@pytest.fixture(scope="module")
def orin():
    return compiled("sm_87", [v.name for v in preset_variants(87, ["vitb14"]) if "fp16" in v.name])


def executable(kernel, variant):
    return traffic.Executable(
        variant, ptx.parse(kernel.ptx), variant.warps * 32, kernel.record["shared_bytes"]
    )


def check_resources(kernel):
    held, mix = kernel.record, instruction_mix(kernel.cubin)
    assert held["spill_bytes"] == 0
    assert held["local_bytes"] == 0
    assert mix["local"] == 0
    assert held["shared_bytes"] <= PLUGIN_SHARED_BYTES
    assert held["plugin"]
    wide = ("load_16_bytes", "store_16_bytes", "async_copy_16_bytes")
    assert any(mix[kind] for kind in wide)
    half = held["dtype"] != "float32" and held["arch"] != "sm_75"
    if held["op"] == "correlation4d" and half:
        assert mix["tensor_core"]


def test_no_spill_no_local_memory_and_a_plugin_can_launch_it(orin):
    assert len(orin) == 5
    for kernel in orin.values():
        check_resources(kernel)


def test_the_ptx_says_what_the_record_says(orin):
    for kernel in orin.values():
        program = ptx.parse(kernel.ptx)
        assert program.name == kernel.record["entry"]
        assert len(program.parameters) == len(kernel.record["parameters"])
        assert f".reqntid {kernel.record['block'][0]}" in kernel.ptx
        assert ".version 8.5" in kernel.ptx
        assert not re.search(r"^\s*\.(file|loc)\b", kernel.ptx, re.MULTILINE)


def test_two_builds_are_equal(orin):
    (name,) = [name for name in orin if "serial-d32" in name]
    again = compiled("sm_87", [name])[name]
    assert again.ptx == orin[name].ptx
    assert again.cubin == orin[name].cubin
    assert again.record == orin[name].record


def test_write_leaves_three_files_for_each_kernel(orin, tmp_path):
    write(list(orin.values()), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 * len(orin) + 1


def test_a_kernel_that_needs_scratch_is_refused(tmp_path):
    """Tensor descriptors on sm_90 live in global scratch memory."""
    script = tmp_path / "descriptor.py"
    script.write_text(_DESCRIPTOR)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert "refused: kernel k needs global_scratch_size" in done.stdout, done.stderr


_DESCRIPTOR = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from uino_deploy.errors import BuildError
from uino_deploy.kernels.compiler.strip import strip_hidden
from uino_deploy.kernels.compiler.worker import source
from uino_deploy.kernels.plugins.operator import Parameter

@triton.jit
def k(x_ptr, n, y_ptr, BLOCK: tl.constexpr):
    view = tl.make_tensor_descriptor(x_ptr, [n, n], [n, 1], [BLOCK, BLOCK])
    out = tl.make_tensor_descriptor(y_ptr, [n, n], [n, 1], [BLOCK, BLOCK])
    out.store([0, 0], view.load([0, 0]))

parameters = [Parameter("x_ptr", "float16", True, 16), Parameter("n", "int32", False, 16)]
parameters += [Parameter("y_ptr", "float16", True, 16)]
made = triton.compile(
    source(k, parameters, {"BLOCK": 32}),
    target=GPUTarget("cuda", 90, 32),
    options={"ptx_version": 90, "enable_fp_fusion": True},
)
try:
    strip_hidden(made.asm["ptx"], made.metadata._asdict(), 3)
except BuildError as error:
    print("refused:", error)
"""


def test_a_failing_compiler_process_is_a_build_error(monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(BuildError, match="compiling for sm_87 ended with"):
        compile_target(target("sm_87", "12.6"), ["vitb14"])


# What the executor is given, and what the reference makes of it.


def random_operands(shape, dtype):
    generator = torch.Generator().manual_seed(3)
    out = []
    sizes = traffic.array_shapes(shape)[:-1]
    for position, size in enumerate(sizes):
        values = torch.randn(*size, generator=generator)
        if isinstance(shape, ScanShape) and position >= 4:
            values = [values, values - 3, -4 * values.abs(), values][position - 4]
            out.append(values)
        else:
            out.append(values.to(TORCH[dtype]))
    return out


def as_numpy(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()


def execute(kernel, variant, shape, capability, dtype):
    """Launch the whole grid in the executor; return the output and the reference's."""
    tensors = random_operands(shape, dtype)
    stored = np.uint16 if dtype == "bfloat16" else np.dtype(dtype)
    out = ptx.poisoned(traffic.array_shapes(shape)[-1], stored)
    ptx.launch(
        ptx.parse(kernel.ptx),
        grid=grid_of(variant, shape, capability),
        block=variant.warps * 32,
        shared=kernel.record["shared_bytes"],
        arguments=[*map(as_numpy, tensors), *scalars_of(shape), out],
    )
    assert out.complete
    got = torch.from_numpy(out.array)
    got = got.view(torch.bfloat16) if dtype == "bfloat16" else got
    exact = [t.double() for t in tensors]
    if isinstance(shape, ScanShape):
        return got, scan_naive.selective_scan2d(*exact)
    grid = (shape.height, shape.width, shape.pool)
    return got, correlation_naive.correlation4d(*exact, *grid)


def small_shapes():
    """One shape for each kernel of vitb14, ragged, with the variant's compile-time numbers."""
    return [
        CorrelationShape(1, 1, 2, 140, 96, 7, 8, 3),
        ScanShape(1, 9, 11, 32, 4, 2),
        ScanShape(17, 2, 5, 32, 4, 2),
        ScanShape(1, 9, 11, 64, 4, 4),
        ScanShape(17, 2, 5, 64, 4, 4),
    ]


def check_numbers(kernels, arch, dtype):
    capability = int(arch.removeprefix("sm_"))
    for shape in small_shapes():
        variant = variant_for(shape, dtype, capability)
        kernel = kernels[variant.name]
        got, expected = execute(kernel, variant, shape, capability, dtype)
        error = ((got.double() - expected).norm() / expected.norm()).item()
        assert error <= OPERATOR[dtype].relative_l2, (variant.name, error)


def test_the_shipped_ptx_computes_the_operators(orin):
    check_numbers(orin, "sm_87", "float16")


# The gates of traffic, at vitb14 with one image and one shot.


@pytest.mark.parametrize("shape", SCANS, ids=lambda s: f"S{s.sequences}-T{s.length}-D{s.channels}")
def test_the_scan_asks_for_each_byte_once(orin, shape):
    variant = variant_for(shape, "float16", 87)
    assert scan_tiling(shape).block_d == shape.channels  # the width is not split
    moved = traffic.count(executable(orin[variant.name], variant), shape, 87)
    compulsory = traffic.compulsory_bytes(variant, shape)
    assert moved.requested_bytes + moved.written_bytes <= 1.05 * compulsory


def test_the_correlation_is_bound_by_arithmetic(orin):
    variant = variant_for(CORRELATION, "float16", 87)
    moved = traffic.count(executable(orin[variant.name], variant), CORRELATION, 87)
    once, at_tile = unfused.correlation_bytes(variant, CORRELATION)
    output = 2 * int(np.prod(traffic.array_shapes(CORRELATION)[-1]))
    assert moved.written_bytes <= 1.05 * output
    assert moved.requested_bytes <= 0.7 * at_tile
    assert traffic.flops(CORRELATION) / moved.requested_bytes >= 55
    assert traffic.compulsory_bytes(variant, CORRELATION) <= 0.15 * once


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_shipped_variant_holds_the_gates(arch):
    presets = ("vits14", "vitb14", "vitl14", "tiny")
    for kernel in compiled(arch, presets=presets).values():
        check_resources(kernel)


@pytest.mark.slow
@pytest.mark.parametrize("arch", EXECUTABLE)
@pytest.mark.parametrize("dtype", TORCH)
def test_every_executable_ptx_computes_the_operators(arch, dtype):
    check_numbers(compiled(arch), arch, dtype)
