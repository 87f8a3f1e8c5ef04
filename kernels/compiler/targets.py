"""The GPUs we compile for: the CUDA releases and element types of each."""

from __future__ import annotations

from dataclasses import dataclass

from uino_deploy.errors import BuildError, InputError

# CUDA release -> PTX ISA that its driver accepts, ten times the version (8.5 -> 85).
PTX_ISA = {"12.6": 85, "13.0": 90, "13.2": 92}

# Triton 3.9 assembles for architectures before sm_90 with the ptxas of CUDA 12.9. Drivers accept
# PTX older than their own.
_OLD_ASSEMBLER_ISA = 88

# Architecture -> (boards and chips, the least PTX ISA that names it). Source: the PTX ISA manual's
# table of target directives.
ARCHITECTURES: dict[str, tuple[str, int]] = {
    "sm_75": ("Turing: T4, RTX 20", 63),
    "sm_80": ("Ampere: A100", 70),
    "sm_86": ("Ampere: A10, RTX 30", 71),
    "sm_87": ("Ampere: Jetson Orin", 74),
    "sm_89": ("Ada: L4, RTX 40", 78),
    "sm_90": ("Hopper: H100, H200", 80),
    "sm_100": ("Blackwell: B200", 86),
    "sm_103": ("Blackwell: B300", 88),
    "sm_110": ("Blackwell: Jetson Thor", 90),
    "sm_120": ("Blackwell: RTX 50", 87),
    "sm_121": ("Blackwell: GB10", 88),
}

# The element types of the kernels, and their short names, in file names and as Triton's types.
DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Target:
    """One architecture with one CUDA release."""

    arch: str
    cuda: str

    @property
    def capability(self) -> int:
        """Compute capability as Triton writes it, 87 for sm_87."""
        return capability_of(self.arch)

    @property
    def ptx_isa(self) -> int:
        """PTX ISA version times ten: the release's, capped by what Triton's assembler accepts."""
        newest = PTX_ISA[self.cuda]
        return newest if self.capability >= 90 else min(newest, _OLD_ASSEMBLER_ISA)


def newest_isa(assembler: str) -> int:
    """Return the newest PTX ISA that a ptxas takes, ten times the version.

    Args:
        assembler: its CUDA release, such as "12.8": ISA 8.7. Source: the PTX ISA manual's release
            notes; Triton's `ptx_get_version` has the same rule.
    """
    major, minor = map(int, assembler.split(".")[:2])
    if major >= 13:
        return 90 + minor
    return 79 + minor if minor >= 6 else 80 + minor  # 12.6 brought no new ISA


def capability_of(arch: str) -> int:
    """Return an architecture's compute capability as Triton writes it, 87 for sm_87."""
    return int(arch.removeprefix("sm_"))


def dtypes_of(capability: int) -> list[str]:
    """Return the element types that the kernels for a compute capability compute in."""
    return [dtype for dtype in DTYPES if dtype != "bfloat16" or capability >= 80]


def oldest_cuda(arch: str) -> str:
    """Return the oldest listed CUDA release that supports an architecture.

    Raises:
        InputError: an unknown architecture.
    """
    if arch not in ARCHITECTURES:
        raise InputError(
            f"unknown architecture {arch!r}", f"choose from {', '.join(ARCHITECTURES)}"
        )
    return next(release for release, isa in PTX_ISA.items() if isa >= ARCHITECTURES[arch][1])


def isa_for(target: Target, assembler: str) -> int:
    """Return the PTX ISA to ask Triton for: the target's, capped by the available assembler.

    Raises:
        BuildError: the assembler is too old to know the architecture.
    """
    isa, least = min(target.ptx_isa, newest_isa(assembler)), ARCHITECTURES[target.arch][1]
    if isa < least:
        raise BuildError(
            f"the ptxas of CUDA {assembler} that this Triton brings takes PTX up to "
            f"{newest_isa(assembler) / 10}, and {target.arch} needs {least / 10}",
            "install a newer Triton",
        )
    return isa


def target(arch: str, cuda: str) -> Target:
    """Return the target of an architecture and a CUDA release.

    Raises:
        InputError: an unknown architecture or release, or a release older than the architecture.
    """
    oldest_cuda(arch)
    if cuda not in PTX_ISA:
        raise InputError(f"unknown CUDA release {cuda!r}", f"choose from {', '.join(PTX_ISA)}")
    least = ARCHITECTURES[arch][1]
    if PTX_ISA[cuda] < least:
        newer = [release for release, isa in PTX_ISA.items() if isa >= least]
        raise InputError(
            f"CUDA {cuda} (PTX ISA {PTX_ISA[cuda] / 10}) does not know {arch}",
            f"use --cuda {newer[0]} or newer",
        )
    return Target(arch, cuda)
