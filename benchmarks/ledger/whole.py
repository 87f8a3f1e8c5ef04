"""The whole `Hypercorrelation` as launches and bytes: the operators, and the glue between them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from uino_deploy.benchmarks.ledger.operators import OperatorCount
from uino_deploy.config import UinoConfig
from uino_deploy.kernels.plugins.library import OPERATORS
from uino_deploy.model.hypercorrelation import Hypercorrelation, SelectiveScanBlock

OURS = tuple(operator.kernel for operator in OPERATORS.values())


@dataclass(frozen=True)
class Whole:
    """One call of a preset's `Hypercorrelation`.

    Attributes:
        launches: operators that touch memory, without those of parameters alone.
        constants: operators of parameters alone, which an exported graph has folded.
        bytes: each launch's inputs once and its outputs.
        by_operator: (name, launches, bytes), ours first, then the most bytes first.
    """

    launches: int
    constants: int
    bytes: int
    by_operator: list[tuple[str, int, int]]


def count_whole(preset: str, dtype: str, shots: int = 1) -> Whole:
    """Count one query's call of a preset's `Hypercorrelation`, on tensors without storage.

    Args:
        preset: one of `PRESETS`.
        dtype: float32, float16 or bfloat16; the scan's parameters are float32 in each.
        shots: support images.
    """
    config, kind = UinoConfig.from_preset(preset), getattr(torch, dtype)
    layers, width = len(config.encoder.correlation_layers), config.encoder.width
    with torch.device("meta"):
        model = Hypercorrelation(config.prompt, layers, config.decoder.width).to(kind)
        for module in model.modules():
            if isinstance(module, SelectiveScanBlock):
                for name in module.float32_parameters:
                    wide = getattr(module, name).detach().float()
                    setattr(module, name, torch.nn.Parameter(wide))
        query = torch.empty(1, layers, config.tokens, width, dtype=kind)
        support = torch.empty(1, shots, layers, config.tokens, width, dtype=kind)
        weight = torch.empty(1, shots, config.tokens, dtype=kind)
    with torch.no_grad(), OperatorCount() as counter:
        model(query, support, weight)
    launches: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for name, held in counter.launches:
        launches[name] += 1
        moved[name] += held
    order = sorted(moved, key=lambda name: (name not in OURS, -moved[name]))
    rows = [(name, launches[name], moved[name]) for name in order]
    return Whole(len(counter.launches), len(counter.constants), counter.bytes, rows)
