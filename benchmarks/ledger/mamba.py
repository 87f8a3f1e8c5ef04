"""The memory traffic of mamba-ssm's CUDA kernel, counted by compiling its sdist and executing it.

This needs nvcc and torch's headers, and keeps nothing of mamba-ssm but the counts:

    pip download --no-deps --no-binary :all: mamba-ssm==2.3.2.post1
    python -m uino_deploy.benchmarks.ledger.mamba mamba_ssm-2.3.2.post1.tar.gz > mamba_ssm.json
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uino_deploy import ptx
from uino_deploy.benchmarks.ledger.traffic import NUMPY
from uino_deploy.config import PRESETS
from uino_deploy.errors import CheckFailed
from uino_deploy.files import sha256
from uino_deploy.kernels.compiler.shapes import ScanShape, scan_shapes
from uino_deploy.kernels.compiler.variants import ELEMENT_BYTES
from uino_deploy.kernels.identity import DIRECTIONS
from uino_deploy.kernels.selective_scan import naive
from uino_deploy.tolerances import OPERATOR
from uino_deploy.workspace import work_folder

ARCH = "sm_80"

# setup.py's flags for nvcc.
_FLAGS = [
    *("-O3", "-std=c++17", "--expt-relaxed-constexpr", "--expt-extended-lambda", "--use_fast_math"),
    *(f"-U__CUDA_NO_{kind}_OPERATORS__" for kind in ("HALF", "BFLOAT16", "BFLOAT162")),
    *(f"-U__CUDA_NO_{kind}_CONVERSIONS__" for kind in ("HALF", "BFLOAT16", "BFLOAT162")),
]
_CPP = {"float32": "float", "float16": "at::Half", "bfloat16": "at::BFloat16"}
# One entry, and a constant that shows in the PTX the shared memory its launcher requests.
_SOURCE = """
#include "selective_scan_fwd_kernel.cuh"
using Traits = Selective_Scan_fwd_kernel_traits<{threads}, {items}, 1, {even}, true, true, false,
                                                {kind}, float>;
template __global__ void selective_scan_fwd_kernel<Traits>(SSMParamsBase);
__device__ __constant__ int shared_bytes = Traits::kSmemSize + MAX_DSTATE * sizeof(Traits::scan_t);
"""
# CPU builds of torch lack a header that this one would include; the kernel needs neither.
_EXCEPTION_HEADER = "#define C10_CUDA_CHECK(x) (x)\n#define C10_CUDA_KERNEL_LAUNCH_CHECK()\n"


@dataclass(frozen=True)
class Kernel:
    """One instantiation: the threads of a block, and the steps that a thread takes at a time."""

    threads: int
    items: int
    even: bool
    dtype: str

    @classmethod
    def for_length(cls, length: int, dtype: str) -> Kernel:
        """Return the instantiation that mamba-ssm's launcher picks (`selective_scan_fwd_cuda`)."""
        rule = ((128, 32, 4), (256, 32, 8), (512, 32, 16), (1024, 64, 16))
        threads, items = next(((t, i) for most, t, i in rule if length <= most), (128, 16))
        return cls(threads, items, length % (threads * items) == 0, dtype)


@dataclass(frozen=True)
class Compiled:
    """A kernel's PTX and cubin, its dynamic shared memory and its resources by ptxas."""

    ptx: str
    cubin: bytes
    shared_bytes: int
    registers: int
    spill_bytes: int


def compile_kernel(kernel: Kernel, sources: Path, arch: str = ARCH) -> Compiled:
    """Compile one instantiation from the unpacked sdist, with the nvcc on PATH.

    Raises:
        CheckFailed: the compiler or the assembler failed.
        OSError: one of them is not installed.
    """
    include = Path(torch.__file__).parent / "include"
    with work_folder(None, "uino-mamba") as folder:
        stub = folder / "c10/cuda/CUDAException.h"
        stub.parent.mkdir(parents=True)
        stub.write_text(_EXCEPTION_HEADER)
        code = folder / "kernel.cu"
        even, kind = str(kernel.even).lower(), _CPP[kernel.dtype]
        code.write_text(
            _SOURCE.format(threads=kernel.threads, items=kernel.items, even=even, kind=kind)
        )
        text, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        paths = [f"-I{p}" for p in (folder, sources / "csrc/selective_scan", include)]
        _run(["nvcc", "-ptx", f"-arch={arch}", *_FLAGS, *paths, str(code), "-o", str(text)])
        usage = _run(["ptxas", "-v", f"-arch={arch}", str(text), "-o", str(cubin)])
        source, code_of_card = text.read_text(), cubin.read_bytes()
    return Compiled(
        source,
        code_of_card,
        int(_find(r"shared_bytes = (\d+)", source)),
        int(_find(r"Used (\d+) registers", usage)),
        int(_find(r"(\d+) bytes spill stores", usage)),
    )


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckFailed(f"{command[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout + done.stderr


def _find(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise CheckFailed(f"nothing in the compiler's output matches {pattern}")
    return match[1]


def layout(
    batch: int, channels: int, states: int, length: int, rows: int
) -> tuple[list[int], list[int]]:
    """Return the sizes (int32) and the strides (uint64) that open the kernel's parameter struct.

    u, delta and the output are contiguous [batch, 4 * channels, length]; B and C are parts of
    arrays [batch, 4, rows, length] of `rows` rows for each direction, `states` of them their own.
    Between sizes and strides stand three flags (uint8: B varies, C varies, softplus), and after
    the strides the pointers: A, B, C, D, u, delta, bias, out, last states, z, out_z.
    """
    dim, chunks = DIRECTIONS * channels, -(-length // 2048)
    sizes = [batch, dim, length, states, DIRECTIONS, chunks, channels]
    of_groups = [DIRECTIONS * rows * length, 0, length, rows * length]
    of_rows = [dim * length, length]
    strides = [states, 1, *of_groups, *of_groups, *of_rows, *of_rows, 0, 0, *of_rows, 0, 0]
    return sizes, strides


def execute(compiled: Compiled, kernel: Kernel, shape: ScanShape) -> dict[str, Any]:
    """Run the kernel on one plane of four directions; return its counts.

    The plane becomes the 1-D scan that mamba-ssm would compute for it: the directions stacked as
    groups, x permuted for each, delta at full width.

    Raises:
        CheckFailed: its output differs from the reference's.
    """
    batch, dim, length, states = 1, DIRECTIONS * shape.channels, shape.length, shape.states
    chunks = -(-length // 2048)
    dtype = getattr(torch, kernel.dtype)
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    u, delta = draw(batch, dim, length).to(dtype), (draw(batch, dim, length) / 2 - 1).to(dtype)
    b, c = (draw(batch, DIRECTIONS, states, length).to(dtype) for _ in range(2))
    a, skip, bias = -draw(dim, states).abs(), draw(dim), draw(dim) / 8
    out = ptx.poisoned((batch, dim, length), NUMPY[kernel.dtype])
    last = ptx.poisoned((batch, dim, chunks, 2 * states), np.float32)
    sizes, strides = layout(batch, shape.channels, states, length, states)
    trace = ptx.launch(
        ptx.parse(compiled.ptx),
        grid=(batch, dim, 1),
        block=kernel.threads,
        shared=compiled.shared_bytes,
        arguments=[
            ptx.Struct(
                *map(np.int32, sizes),
                *(np.uint8(1) for _ in range(3)),  # B varies, C varies, softplus
                *map(np.uint64, strides),
                *(_bits(t) for t in (a, b, c, skip, u, delta, bias)),
                *(out, last, None, None),
            )
        ],
    )
    arrays, groups = (u.double(), delta.double()), (b.double(), c.double())
    expected = naive.selective_scan_fn(
        *arrays, a.double(), *groups, skip.double(), None, bias.double(), True
    )
    assert isinstance(expected, torch.Tensor)  # the last state is not requested
    got = torch.from_numpy(out.array)
    got = (got.view(torch.bfloat16) if kernel.dtype == "bfloat16" else got).double()
    error = ((got - expected).norm() / expected.norm()).item()
    if not out.complete or error > OPERATOR[kernel.dtype].relative_l2:
        raise CheckFailed(f"mamba-ssm's kernel was executed with a relative error of {error:.1e}")
    given = sum(t.nbytes for t in (u, delta, a, b, c, skip, bias))
    return {
        "relative_l2": float(f"{error:.3g}"),
        "requested_bytes": trace.requested_bytes,
        "written_bytes": trace.written_bytes,
        "load_sectors": trace.load_sectors,
        "store_sectors": trace.store_sectors,
        "compulsory_bytes": given + out.array.nbytes,
    }


def _bits(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def shapes() -> list[ScanShape]:
    """Return the presets' scans, one sequence of each, and one with 32 channels in all groups."""
    shapes_by_size = {(1369, 8, 4): ScanShape(1, 37, 37, 8, 4, 2)}
    for config in PRESETS.values():
        for s in scan_shapes(config):
            shapes_by_size[s.length, s.channels, s.states] = ScanShape(
                1, s.height, s.width, s.channels, s.states, s.rank
            )
    return [shapes_by_size[key] for key in sorted(shapes_by_size, reverse=True)]


def count(sources: Path) -> Iterator[dict[str, Any]]:
    """Yield one record for each of the presets' scans and types."""
    for shape in shapes():
        for dtype in ELEMENT_BYTES:
            kernel = Kernel.for_length(shape.length, dtype)
            compiled = compile_kernel(kernel, sources)
            yield {
                **{"length": shape.length, "channels": shape.channels, "states": shape.states},
                **{"groups": DIRECTIONS, "dtype": dtype},
                **{"threads": kernel.threads, "items": kernel.items},
                "shared_bytes": compiled.shared_bytes,
                "registers": compiled.registers,
                "spill_bytes": compiled.spill_bytes,
                **execute(compiled, kernel, shape),
            }


def main() -> None:
    """Write the counts of the sdist named on the command line to standard output."""
    sdist = Path(sys.argv[1])
    with work_folder(None, "uino-mamba") as folder, tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
        (sources,) = folder.iterdir()
        document = {
            "source": sdist.name,
            "sha256": sha256(sdist),
            "nvcc": _find(r"(V[\d.]+)", _run(["nvcc", "--version"])),
            "arch": ARCH,
            "flags": _FLAGS,
            "counted": "one sequence of four directions, every block executed and compared",
            "scans": list(count(sources)),
        }
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
