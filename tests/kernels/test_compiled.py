"""The compiled kernels: what ptxas says of them, what they compute and what they move.

The gates run on the float16 variants of vitb14 for the Jetson Orin; those of the other types and
architectures are marked slow, and `test_ledger.py` holds the committed ledger to them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.presets import preset_variants
from uino_deploy import ptx
from uino_deploy.benchmarks.ledger import numerics, traffic, unfused
from uino_deploy.benchmarks.ledger.disassembly import instruction_mix, loop_mix
from uino_deploy.benchmarks.ledger.records import executable, variant_for
from uino_deploy.config import PRESETS, UinoConfig
from uino_deploy.errors import BuildError, InputError
from uino_deploy.kernels.compiler.build import (
    PLUGIN_SHARED_BYTES,
    compile_target,
    elf_abi,
    read,
    write,
)
from uino_deploy.kernels.compiler.shapes import correlation_shape, scan_shapes, volume_shapes
from uino_deploy.kernels.compiler.targets import (
    ARCHITECTURES,
    capability_of,
    oldest_cuda,
    target,
)
from uino_deploy.kernels.compiler.variants import scan_tiling
from uino_deploy.ptx.dataflow import basic_blocks, maybe_unwritten

VITB14 = UinoConfig.from_preset("vitb14")
CORRELATION, SCANS = correlation_shape(VITB14), scan_shapes(VITB14)
# Of the operators around the scans one each; all of them in the slow test.
AROUND = [volume_shapes(VITB14)[0], volume_shapes(VITB14)[3], volume_shapes(VITB14)[4]]
EXECUTABLE = ["sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_120"]


def compiled(arch, names=None, presets=("vitb14",)):
    kernels = compile_target(target(arch, oldest_cuda(arch)), list(presets), names)
    return {k.name.removesuffix(f"-{arch}"): k for k in kernels}


HALF_VARIANTS = [variant_for(s, "float16", 87) for s in (CORRELATION, *SCANS, *AROUND)]
HALF = [variant.name for variant in HALF_VARIANTS]
ONE_OF_EACH = [
    f"{kernel}-{dtype}"
    for kernel in ("correlation4d-p3", "selective_scan2d-serial-d32n4r2p16")
    for dtype in ("fp32", "fp16", "bf16")
]


@pytest.fixture(scope="module")
def built():
    """Everything that the quick tests need, compiled in one process."""
    return compiled("sm_87", [*HALF, *(name for name in ONE_OF_EACH if name not in HALF)])


@pytest.fixture(scope="module")
def orin(built):
    """The float16 kernels of vitb14 for the Jetson Orin."""
    return {name: built[name] for name in HALF}


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
    if held["op"] != "selective_scan2d" and half:
        assert mix["tensor_core"]
    if half:
        assert not loop_mix(kernel.cubin)["load_2_bytes"]
    if held["op"] == "selective_scan2d":
        loop = loop_mix(kernel.cubin)
        assert loop["barrier"] <= 2
        n = held["constants"]
        visits = n["ROWS"] * n["STEPS"] * n["BLOCK_D"] / (32 * held["warps"])
        assert loop["total"] <= (115 if n["PARALLEL"] else 70) * visits


def test_no_spill_no_local_memory_and_a_plugin_can_launch_it(orin):
    assert len(orin) == 8
    for kernel in orin.values():
        check_resources(kernel)


def test_the_ptx_says_what_the_record_says(orin):
    for kernel in orin.values():
        program = ptx.parse(kernel.ptx)
        assert program.name == kernel.record["entry"]
        assert len(program.parameters) == len(kernel.record["parameters"])
        assert f".reqntid {kernel.record['block'][0]}" in kernel.ptx
        assert ".version 8.5" in kernel.ptx
        assert (kernel.record["ptx_isa"], kernel.record["elf_abi"]) == (8.5, 7)
        assert not re.search(r"^\s*\.(file|loc)\b", kernel.ptx, re.MULTILINE)


@pytest.mark.parametrize(
    ("header", "abi"),
    [("7f454c46020101330700", 7), ("7f454c46020101410800", 8)],  # ptxas 12.8 and 13.4, sm_90
)
def test_the_elf_abi_is_read_from_the_cubin(header, abi):
    assert elf_abi(bytes.fromhex(header)) == abi


def test_two_builds_are_equal_byte_for_byte(built, tmp_path, monkeypatch):
    """In another process, from another folder, into another folder, with another cache."""
    (tmp_path / "one").mkdir()
    (tmp_path / "elsewhere" / "two").mkdir(parents=True)
    write([built[name] for name in ONE_OF_EACH], tmp_path / "one")
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = compiled("sm_87", ONE_OF_EACH)
    write([again[name] for name in ONE_OF_EACH], Path("two"))
    first, second = contents(tmp_path / "one"), contents(Path("two"))
    assert len(first) == 3 * len(ONE_OF_EACH) + 1
    assert first == second


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_of_kernels_reads_back_and_shows_a_change(orin, tmp_path):
    written = sorted(orin.values(), key=lambda k: k.name)
    write(written, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 * len(orin) + 1
    assert read(tmp_path) == written
    file = tmp_path / f"{written[0].name}.ptx"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(InputError, match="is not the file that its JSON describes"):
        read(tmp_path)
    with pytest.raises(InputError, match="contains no readable kernels"):
        read(tmp_path / "nowhere")


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
    with pytest.raises(BuildError, match="compiling for sm_87: its process died with status"):
        compile_target(target("sm_87", "12.6"), ["vitb14"])


def test_the_shipped_ptx_computes_the_operators(orin):
    for variant in HALF_VARIANTS:
        kernel = executable(orin[variant.name], variant)
        error = numerics.relative_error(kernel, numerics.small_shape(variant), 87)
        assert error <= numerics.tolerance(variant), variant.name


def test_the_correlation_for_hopper_computes_the_operator():
    """Its products run in flight: executed, a tile that is overwritten too early is a fault."""
    wanted = {v.name: v for v in preset_variants(90, ["vitb14"]) if v.op == "correlation4d"}
    for name, kernel in compiled("sm_90", list(wanted)).items():
        assert "wgmma.mma_async" in kernel.ptx
        variant = wanted[name]
        error = numerics.relative_error(
            executable(kernel, variant), numerics.small_shape(variant), 90
        )
        assert error <= numerics.tolerance(variant), name


def test_no_register_is_read_that_was_never_written(orin):
    for kernel in orin.values():
        program = ptx.parse(kernel.ptx)
        assert not maybe_unwritten(program, basic_blocks(program))


# The gates of traffic, at vitb14 with one image and one shot.


@pytest.mark.parametrize("shape", SCANS, ids=lambda s: f"S{s.sequences}-T{s.length}-D{s.channels}")
def test_the_scan_asks_for_each_byte_once_in_a_direction(orin, shape):
    variant = variant_for(shape, "float16", 87)
    tiling = scan_tiling(shape)
    # Blocks of a split width each read the small rows, and every group of four sequences the
    # parameters, which for 16 steps are a tenth of its traffic.
    allowed = 1.3 if tiling.block_d < shape.channels else 1.12
    moved = traffic.count(executable(orin[variant.name], variant), shape, 87)
    compulsory = traffic.compulsory_bytes(variant, shape)
    assert moved.requested_bytes + moved.written_bytes <= allowed * compulsory


@pytest.mark.parametrize("shape", AROUND, ids=lambda s: s.op)
def test_the_kernels_around_the_scan_ask_for_little_more_than_their_arrays(orin, shape):
    variant = variant_for(shape, "float16", 87)
    moved = traffic.count(executable(orin[variant.name], variant), shape, 87)
    taps = 9 if shape.op == "scan_prologue" else 1  # of the volume, from the caches
    volume = 2 * shape.cells * shape.channels
    # Each block reads the weights, some of them once for each warp or thread: up to 8 times what
    # its 64 cells hold, from the caches too.
    weights = 8 * volume
    least = traffic.distinct_bytes(variant, shape)
    assert moved.written_bytes <= least
    assert least <= moved.requested_bytes + moved.written_bytes
    assert moved.requested_bytes + moved.written_bytes <= least + (taps - 1) * volume + weights


def test_the_correlation_is_bound_by_arithmetic(orin):
    variant = variant_for(CORRELATION, "float16", 87)
    moved = traffic.count(executable(orin[variant.name], variant), CORRELATION, 87)
    once, at_tile = unfused.correlation_bytes(variant, CORRELATION)
    output = 2 * int(np.prod(traffic.arrays(CORRELATION)[1][0]))
    assert moved.written_bytes <= 1.05 * output
    assert moved.requested_bytes <= 0.7 * at_tile
    assert traffic.flops(CORRELATION) / moved.requested_bytes >= 55
    assert traffic.compulsory_bytes(variant, CORRELATION) <= 0.15 * once


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_shipped_variant_holds_the_gates_and_computes_its_operator(arch):
    """Some minutes an architecture; `ledger.json` keeps what the last run of all found."""
    kernels = compiled(arch, presets=tuple(PRESETS))
    capability = capability_of(arch)
    executed = 0
    for variant in preset_variants(capability):
        check_resources(kernels[variant.name])
        try:
            kernel = executable(kernels[variant.name], variant)
            error = numerics.relative_error(kernel, numerics.small_shape(variant), capability)
        except ptx.UnsupportedPtx:
            continue
        assert error <= numerics.tolerance(variant), variant.name
        executed += 1
    if arch in EXECUTABLE:
        assert executed == len(kernels)
