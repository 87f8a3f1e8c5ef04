"""Known miscompiles of models like ours, as data, and the versions and GPUs affected."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_HALF = frozenset({"fp16", "bf16"})
_ALL = frozenset({"fp32", "fp16", "bf16", "fp8", "int8"})


@dataclass(frozen=True)
class Miscompile:
    """One known fault of a compiler.

    Attributes:
        name: its name in warnings and for `build --workaround`.
        compiler: "tensorrt" or "triton".
        since: the first version seen with it.
        before: the first version seen without it, if any.
        architectures: the affected GPUs; empty for all.
        precisions: the precisions of the affected pieces.
        symptom: the wrong behaviour.
        source: the report.
        advice: what to do.
        environment: variables that avoid it in the building process, if any.
        mended: whether our own code avoids it, so that the user need not act.
    """

    name: str
    compiler: str
    since: tuple[int, ...]
    before: tuple[int, ...] | None
    architectures: frozenset[str]
    precisions: frozenset[str]
    symptom: str
    source: str
    advice: str
    environment: Mapping[str, str] = field(default_factory=dict)
    mended: bool = False

    @property
    def warning(self) -> str:
        """One line: the name, the symptom, the source and the advice."""
        return f"{self.name}: {self.symptom} ({self.source}); {self.advice}"


MISCOMPILES = (
    Miscompile(
        name="dino-10.3",
        compiler="tensorrt",
        since=(10, 3),
        before=(10, 5),
        architectures=frozenset(),
        precisions=_ALL,
        symptom="TensorRT 10.3 and 10.4 build DINO-like encoders that are wrong, in fp32 too "
        "(cosine 0.018)",
        source="NVIDIA/TensorRT#4742, #4723, #4558",
        advice="use TensorRT 10.14 or newer (JetPack 7.2 on an Orin)",
    ),
    Miscompile(
        name="thor-qkv-fusion",
        compiler="tensorrt",
        since=(10, 13),
        before=(10, 14),
        architectures=frozenset({"sm_110"}),
        precisions=_ALL,
        symptom="TensorRT 10.13 fuses q, k and v into a wrong product at batch 1 on Thor",
        source="NVIDIA/TensorRT-Edge-LLM#151",
        advice="build with --workaround thor-qkv-fusion, or use TensorRT 10.16 or newer",
        environment={"__LUNOWUD": "-peep:fc_h_fusion=off"},
    ),
    Miscompile(
        name="sm120-half-attention",
        compiler="tensorrt",
        since=(10, 0),
        before=None,
        architectures=frozenset({"sm_120"}),
        precisions=_HALF,
        symptom="TensorRT, seen up to 10.16.1, fuses attention in half types into wrong code",
        source="NVIDIA/TensorRT#4837",
        advice="export the encoder in fp32 for this GPU",
    ),
    Miscompile(
        name="triton-wgmma-pipeline",
        compiler="triton",
        since=(3, 6),
        before=None,
        architectures=frozenset({"sm_90"}),
        precisions=_HALF,
        symptom="Triton, seen from 3.6 to 3.9, overwrites a tile with the next one while a product "
        "in flight still reads it (relative L2 0.10 to 0.35 on an H200)",
        source="kernels/correlation/README.md",
        advice="nothing: the correlation waits for each round's product",
        mended=True,
    ),
)


def known_miscompiles(
    compiler: str, version: str, arch: str | None, precisions: Iterable[str] = _ALL
) -> list[Miscompile]:
    """Return the faults of a compiler version on a GPU, without the mended ones.

    Args:
        compiler: "tensorrt" or "triton".
        version: such as "10.13.3.9".
        arch: such as "sm_110"; None if unknown, which leaves out faults of single GPUs.
        precisions: fp32, fp16 or bf16.
    """
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    return [
        each
        for each in MISCOMPILES
        if each.compiler == compiler
        and not each.mended
        and each.since <= numbers
        and (each.before is None or numbers < each.before)
        and (not each.architectures or arch in each.architectures)
        and each.precisions.intersection(precisions)
    ]
