"""The 4D hypercorrelation: its volume, and two ways to aggregate it (MHCM and CP4D).

Sources: UINO-FSS (arXiv 2504.15669) for the module; VMamba (arXiv 2401.10166) for SS2D; Min et
al., "Hypercorrelation Squeeze" (arXiv 2104.01538) for the center-pivot 4D convolution.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.config import PromptConfig
from uino_deploy.kernels import correlation4d, selective_scan2d
from uino_deploy.kernels.identity import DIRECTIONS
from uino_deploy.model.layers import Mlp

NORM_GROUPS = 8


class SelectiveScanBlock(nn.Module):
    """SS2D: a gated, four-direction selective scan over a plane."""

    # The scan's parameters stay float32 in every precision: the state decays by exp(delta * A).
    float32_parameters = ("dt_weight", "dt_bias", "A_log", "skip")
    scan = staticmethod(selective_scan2d)

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.rank = max(2, width // 16)
        self.state = state
        self.in_proj = nn.Linear(width, 2 * width, bias=False)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.x_proj = nn.Linear(width, DIRECTIONS * (self.rank + 2 * state), bias=False)
        self.dt_weight = nn.Parameter(torch.empty(DIRECTIONS, width, self.rank))
        self.dt_bias = nn.Parameter(torch.empty(DIRECTIONS, width))
        self.A_log = nn.Parameter(torch.empty(DIRECTIONS, width, state))
        self.skip = nn.Parameter(torch.ones(DIRECTIONS, width))
        self.norm = nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, width, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        """Initialise as Mamba does: steps log-uniform in [0.001, 0.1], decays 1 to N."""
        nn.init.uniform_(self.dt_weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = math.log(1e-3), math.log(1e-1)
        step = torch.exp(torch.rand_like(self.dt_bias) * (high - low) + low)
        with torch.no_grad():
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
            self.A_log.copy_(torch.arange(1.0, self.state + 1).log().expand_as(self.A_log))

    def forward(self, planes: Tensor) -> Tensor:
        """Map [S, H, W, width] -> [S, H, W, width]."""
        height, width = planes.shape[1:3]
        x, gate = self.in_proj(planes).chunk(2, dim=-1)
        x = F.silu(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        projected = self.x_proj(x).reshape(
            -1, height, width, DIRECTIONS, self.rank + 2 * self.state
        )
        dt, B, C = projected.split([self.rank, self.state, self.state], dim=-1)
        y = self.scan(x, dt, B, C, self.dt_weight, self.dt_bias, -torch.exp(self.A_log), self.skip)
        return self.out_proj(self.norm(y.sum(dim=3)) * F.silu(gate))


class ScanMixer(nn.Module):
    """Residual SS2D over the query plane, then over the support plane."""

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width)
        self.query_scan = SelectiveScanBlock(width, state)
        self.support_norm = nn.LayerNorm(width)
        self.support_scan = SelectiveScanBlock(width, state)

    def forward(self, volume: Tensor) -> Tensor:
        """Map [S, hq, wq, hs, ws, C] -> the same shape."""
        normed = _query_planes(self.query_norm(volume))
        volume = volume + _from_query_planes(self.query_scan(normed), volume)
        normed = self.support_norm(volume).flatten(0, 2)  # [S*hq*wq, hs, ws, C]
        return volume + self.support_scan(normed).reshape(-1, *volume.shape[1:])


class CenterPivotMixer(nn.Module):
    """Residual center-pivot 4D convolution: a 2D convolution over each plane, summed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query_conv = nn.Conv2d(width, width, 3, padding=1)
        self.support_conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, volume: Tensor) -> Tensor:
        """Map [S, hq, wq, hs, ws, C] -> the same shape."""
        normed = self.norm(volume)
        over_query = _conv_last(self.query_conv, _query_planes(normed))
        over_support = _conv_last(self.support_conv, normed.flatten(0, 2))
        summed = _from_query_planes(over_query, volume) + over_support.reshape(
            -1, *volume.shape[1:]
        )
        return volume + F.gelu(summed)


def _query_planes(volume: Tensor) -> Tensor:
    """Map [S, hq, wq, hs, ws, C] -> [S*hs*ws, hq, wq, C]."""
    return volume.permute(0, 3, 4, 1, 2, 5).flatten(0, 2)


def _from_query_planes(planes: Tensor, volume: Tensor) -> Tensor:
    """Map [S*hs*ws, hq, wq, C] -> the volume's layout [S, hq, wq, hs, ws, C]."""
    hq, wq, hs, ws, channels = volume.shape[1:]
    return planes.reshape(-1, hs, ws, hq, wq, channels).permute(0, 3, 4, 1, 2, 5)


def _conv_last(conv: nn.Conv2d, planes: Tensor) -> Tensor:
    return conv(planes.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PlaneNorm(nn.Module):
    """GroupNorm over each plane, exported as one LayerNormalization for its statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, planes: Tensor) -> Tensor:
        """Map [S, C, H, W] -> [S, C, H, W], normalised in groups of C / 8 channels."""
        channels, height, width = planes.shape[1:]
        grouped = planes.reshape(-1, NORM_GROUPS, channels // NORM_GROUPS * height * width)
        normed = F.layer_norm(grouped, grouped.shape[-1:]).reshape(-1, channels, height, width)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


class GlobalModellingBlock(nn.Module):
    """HGMB: squeezes the support plane, mixes both planes, then applies a pointwise MLP."""

    def __init__(self, in_channels: int, channels: int, config: PromptConfig) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.squeeze_norm = PlaneNorm(channels)
        scans = config.hypercorrelation == "mhcm"
        self.mixer = ScanMixer(channels, config.state) if scans else CenterPivotMixer(channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 2 * channels)

    def forward(self, volume: Tensor) -> Tensor:
        """Map [S, hq, wq, hs, ws, Cin] -> [S, hq, wq, ceil(hs/2), ceil(ws/2), C]."""
        hq, wq = volume.shape[1:3]
        planes = volume.flatten(0, 2).permute(0, 3, 1, 2)
        planes = F.gelu(self.squeeze_norm(self.squeeze(planes))).permute(0, 2, 3, 1)
        volume = planes.reshape(-1, hq, wq, *planes.shape[1:])
        volume = self.mixer(volume)
        return volume + self.mlp(self.norm(volume))


class Hypercorrelation(nn.Module):
    """MHCM, or its alternative CP4D: deep tokens of query and support to a dense prompt."""

    correlate = staticmethod(correlation4d)

    def __init__(self, config: PromptConfig, layers: int, embedding: int) -> None:
        super().__init__()
        self.pool = config.pool
        first, *rest = config.channels
        self.mix_layers = nn.Linear(layers, first)
        stages = zip(config.channels[:-1], rest, strict=True)
        self.blocks = nn.ModuleList(GlobalModellingBlock(a, b, config) for a, b in stages)
        self.head = nn.Sequential(
            nn.Conv2d(config.channels[-1], config.head_channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(config.head_channels, embedding, 1),
        )

    def forward(self, query: Tensor, support: Tensor, weight: Tensor) -> Tensor:
        """Correlate and aggregate.

        Args:
            query: [B, L, N, D].
            support: [B or 1, K, L, N, D].
            weight: [B or 1, K, N], in [-1, 1].

        Returns:
            [B, E, h, w].
        """
        grid = round(query.shape[2] ** 0.5)
        pooled = math.ceil(grid / self.pool)
        volume = self.correlate(query, support, weight, grid, grid, self.pool)
        cells = self.mix_layers(volume.flatten(0, 1).permute(0, 2, 3, 1))  # [B*K, N, s, C]
        volume = cells.reshape(-1, grid, grid, pooled, pooled, cells.shape[-1])
        for block in self.blocks:
            volume = block(volume)
        per_shot = volume.mean(dim=(3, 4))  # [B*K, h, w, C]
        per_query = per_shot.reshape(query.shape[0], support.shape[1], *per_shot.shape[1:])
        return self.head(per_query.mean(dim=1).permute(0, 3, 1, 2))


def use_operators(
    model: nn.Module, correlate: Callable[..., Tensor], scan: Callable[..., Tensor]
) -> None:
    """Make one model compute its two operators by other functions, to compare with.

    Args:
        model: changed in place; other models keep the operators of `uino_deploy.kernels`.
        correlate: has the signature of `uino_deploy.kernels.correlation4d`.
        scan: has the signature of `uino_deploy.kernels.selective_scan2d`.
    """
    for module in model.modules():
        if isinstance(module, Hypercorrelation):
            module.correlate = correlate
        elif isinstance(module, SelectiveScanBlock):
            module.scan = scan
