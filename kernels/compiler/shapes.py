"""The shapes at which a model calls the two operators, derived from its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from uino_deploy.config import UinoConfig


@dataclass(frozen=True)
class CorrelationShape:
    """One call of Correlation4d: B, K, L, Nq, D, the support grid and the pool."""

    batch: int
    shots: int
    layers: int
    n_query: int
    channels: int
    height: int
    width: int
    pool: int


@dataclass(frozen=True)
class ScanShape:
    """One call of SelectiveScan2d: S sequences over an H x W plane, width D, state N, rank R."""

    sequences: int
    height: int
    width: int
    channels: int
    states: int
    rank: int

    @property
    def length(self) -> int:
        """The steps of each scan."""
        return self.height * self.width


def correlation_shape(config: UinoConfig, batch: int = 1, shots: int = 1) -> CorrelationShape:
    """Return the shape of the model's correlation."""
    layers = len(config.encoder.correlation_layers)
    grid = config.grid
    return CorrelationShape(
        batch, shots, layers, grid**2, config.encoder.width, grid, grid, config.prompt.pool
    )


def scan_shapes(config: UinoConfig, batch: int = 1, shots: int = 1) -> list[ScanShape]:
    """Return the shapes of the model's scans: per stage, the query plane, then the support's."""
    folded = batch * shots
    side = config.pooled_grid
    shapes = []
    for width in config.prompt.channels[1:]:
        side = -(-side // 2)  # the stage's stride-2 convolution
        state, rank = config.prompt.state, max(2, width // 16)
        shapes.append(ScanShape(folded * side**2, config.grid, config.grid, width, state, rank))
        shapes.append(ScanShape(folded * config.grid**2, side, side, width, state, rank))
    return shapes
