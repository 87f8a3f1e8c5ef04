"""The shapes at which a model calls its operators, derived from its configuration."""

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


@dataclass(frozen=True)
class VolumeShape:
    """A call over a volume [S, hq, wq, hs, ws, D]: what ends and begins one plane's scan.

    `width` is packed's P for the prologue, the MLP's F, and zero for the epilogue; `plane` is zero
    for the MLP.
    """

    op: str
    shots: int
    query: int
    support: int
    channels: int
    width: int
    plane: int

    @property
    def cells(self) -> int:
        """The cells of the volume."""
        return self.shots * self.query**2 * self.support**2


def correlation_shape(config: UinoConfig, batch: int = 1, shots: int = 1) -> CorrelationShape:
    """Return the shape of the model's correlation."""
    layers = len(config.encoder.correlation_layers)
    grid = config.grid
    return CorrelationShape(
        batch, shots, layers, grid**2, config.encoder.width, grid, grid, config.prompt.pool
    )


def stages(config: UinoConfig) -> list[tuple[int, int]]:
    """Return each stage's side of the support's plane and width."""
    side, found = config.pooled_grid, []
    for width in config.prompt.channels[1:]:
        side = -(-side // 2)  # the stage's stride-2 convolution
        found.append((side, width))
    return found


def scan_shapes(config: UinoConfig, batch: int = 1, shots: int = 1) -> list[ScanShape]:
    """Return the shapes of the model's scans: per stage, the query plane, then the support's."""
    folded, grid, state = batch * shots, config.grid, config.prompt.state
    shapes = []
    for side, width in stages(config):
        sizes = (width, state, max(2, width // 16))
        shapes.append(ScanShape(folded * side**2, grid, grid, *sizes))
        shapes.append(ScanShape(folded * grid**2, side, side, *sizes))
    return shapes


def volume_shapes(config: UinoConfig, batch: int = 1, shots: int = 1) -> list[VolumeShape]:
    """Return the shapes of the operators around the scans: per stage both planes', then the MLP."""
    shapes = []
    for side, width in stages(config):
        volume = (batch * shots, config.grid, side, width)
        packed = packed_width(max(2, width // 16), config.prompt.state)
        for plane in (0, 1):
            shapes.append(VolumeShape("scan_prologue", *volume, packed, plane))
            shapes.append(VolumeShape("scan_epilogue", *volume, 0, plane))
        shapes.append(VolumeShape("norm_mlp", *volume, 2 * width, 0))
    return shapes


def packed_width(rank: int, states: int) -> int:
    """Return packed's P: what a row holds, rounded up to a multiple of 8."""
    used = rank + 2 * states
    return used + -used % 8
