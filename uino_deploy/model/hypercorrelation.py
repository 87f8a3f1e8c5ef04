"""The 4D hypercorrelation: its volume, and two ways to aggregate it (MHCM and CP4D).

Sources: UINO-FSS (arXiv 2504.15669) for the module; VMamba (arXiv 2401.10166) for SS2D; Min et
al., "Hypercorrelation Squeeze" (arXiv 2104.01538) for the center-pivot 4D convolution.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.config import PromptConfig
from uino_deploy.kernels import (
    correlation4d,
    norm_mlp,
    scan_epilogue,
    scan_prologue,
    selective_scan2d,
)
from uino_deploy.kernels.identity import DIRECTIONS, NORM_EPS
from uino_deploy.kernels.planes import from_planes, to_planes
from uino_deploy.model.layers import Mlp

NORM_GROUPS = 8
QUERY, SUPPORT = 0, 1  # the plane that a scan goes over


class Operators(NamedTuple):
    """The functions that compute a model's operators, each with the signature of its default."""

    correlate: Callable[..., Tensor] = correlation4d
    prologue: Callable[..., tuple[Tensor, Tensor]] = scan_prologue
    scan: Callable[..., Tensor] = selective_scan2d
    epilogue: Callable[..., Tensor] = scan_epilogue
    mlp: Callable[..., Tensor] = norm_mlp


class SelectiveScanBlock(nn.Module):
    """SS2D: a gated, four-direction selective scan over one plane of the volume."""

    # The scan's parameters stay float32 in every precision: the state decays by exp(delta * A).
    float32_parameters = ("dt_weight", "dt_bias", "A_log", "skip")
    operators = Operators()

    def __init__(self, width: int, state: int, plane: int) -> None:
        super().__init__()
        self.rank = max(2, width // 16)
        self.state = state
        self.plane = plane
        self.in_proj = nn.Linear(width, 2 * width, bias=False)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.x_proj = nn.Linear(width, DIRECTIONS * (self.rank + 2 * state), bias=False)
        self.dt_weight = nn.Parameter(torch.empty(DIRECTIONS, width, self.rank))
        self.dt_bias = nn.Parameter(torch.empty(DIRECTIONS, width))
        self.A_log = nn.Parameter(torch.empty(DIRECTIONS, width, state))
        self.skip = nn.Parameter(torch.ones(DIRECTIONS, width))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
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

    def forward(self, volume: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Scan the normed volume and add the result to the volume [S, hq, wq, hs, ws, C]."""
        before = in_type(volume, norm.weight, norm.bias)
        both = self.in_proj.weight  # slices fold at export, a split does not
        width = volume.shape[-1]
        of_x, of_gate = in_type(volume, both[:width], both[width:])
        kernel = in_type(volume, self.conv.weight[:, 0], self.conv.bias, self._projection())
        x, packed = self.operators.prologue(volume, *before, of_x, *kernel, self.plane)
        A = -torch.exp(self.A_log)
        y = self.operators.scan(x, packed, self.dt_weight, self.dt_bias, A, self.skip)
        ending = in_type(volume, self.norm.weight, self.norm.bias, self.out_proj.weight)
        return self.operators.epilogue(y, volume, *before, of_gate, *ending, self.plane)

    def _projection(self) -> Tensor:
        """Return x_proj's weight as [4, P, width]: zero rows pad P to a multiple of 8."""
        rows = self.rank + 2 * self.state
        weight = self.x_proj.weight.reshape(DIRECTIONS, rows, -1)
        return F.pad(weight, (0, 0, 0, -rows % 8))


def in_type(like: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """Return tensors in a type: an operator takes one, and autocast does not reach into it."""
    return [tensor.to(like.dtype) for tensor in tensors if tensor is not None]


class ScanMixer(nn.Module):
    """Residual SS2D over the query plane, then over the support plane."""

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.query_scan = SelectiveScanBlock(width, state, QUERY)
        self.support_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.support_scan = SelectiveScanBlock(width, state, SUPPORT)

    def forward(self, volume: Tensor) -> Tensor:
        """Map [S, hq, wq, hs, ws, C] -> the same shape."""
        volume = self.query_scan(volume, self.query_norm)
        return self.support_scan(volume, self.support_norm)


class CenterPivotMixer(nn.Module):
    """Residual center-pivot 4D convolution: a 2D convolution over each plane, summed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query_conv = nn.Conv2d(width, width, 3, padding=1)
        self.support_conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, volume: Tensor) -> Tensor:
        """Map [S, hq, wq, hs, ws, C] -> the same shape."""
        normed, cells = self.norm(volume), tuple(volume.shape[:5])
        over_query = _conv_last(self.query_conv, to_planes(normed, QUERY))
        over_support = _conv_last(self.support_conv, to_planes(normed, SUPPORT))
        summed = from_planes(over_query, QUERY, cells) + from_planes(over_support, SUPPORT, cells)
        return volume + F.gelu(summed)


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
        return torch.addcmul(self.bias[:, None, None], normed, self.weight[:, None, None])


class GlobalModellingBlock(nn.Module):
    """HGMB: squeezes the support plane, mixes both planes, then applies a pointwise MLP."""

    operators = Operators()

    def __init__(self, in_channels: int, channels: int, config: PromptConfig) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.squeeze_norm = PlaneNorm(channels)
        scans = config.hypercorrelation == "mhcm"
        self.mixer = ScanMixer(channels, config.state) if scans else CenterPivotMixer(channels)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp = Mlp(channels, 2 * channels)

    def forward(self, volume: Tensor) -> Tensor:
        """Map [S, hq, wq, hs, ws, Cin] -> [S, hq, wq, ceil(hs/2), ceil(ws/2), C]."""
        hq, wq = volume.shape[1:3]
        planes = volume.flatten(0, 2).permute(0, 3, 1, 2)
        planes = F.gelu(self.squeeze_norm(self.squeeze(planes))).permute(0, 2, 3, 1)
        volume = planes.reshape(-1, hq, wq, *planes.shape[1:]).contiguous()
        volume = self.mixer(volume)
        fc1, fc2 = self.mlp.fc1, self.mlp.fc2
        layers = (self.norm.weight, self.norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        return self.operators.mlp(volume, *in_type(volume, *layers))


class Hypercorrelation(nn.Module):
    """MHCM, or its alternative CP4D: deep tokens of query and support to a dense prompt."""

    operators = Operators()

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
        volume = self.operators.correlate(query, support, weight, grid, grid, self.pool)
        # A view at one shot; a linear layer of more dimensions copies it, and adds its bias apart.
        layers = volume.flatten(0, 1).flatten(2).transpose(1, 2).flatten(0, 1)  # [B*K*N*s, L]
        cells = self.mix_layers(layers)
        volume = cells.reshape(-1, grid, grid, pooled, pooled, cells.shape[-1])
        for block in self.blocks:
            volume = block(volume)
        per_shot = volume.mean(dim=(3, 4))  # [B*K, h, w, C]
        per_query = per_shot.reshape(query.shape[0], support.shape[1], *per_shot.shape[1:])
        return self.head(per_query.mean(dim=1).permute(0, 3, 1, 2))


def use_operators(model: nn.Module, operators: Operators) -> None:
    """Make one model compute its operators by other functions, to compare with.

    Args:
        model: changed in place; other models keep the operators of `uino_deploy.kernels`.
        operators: the functions.
    """
    for module in model.modules():
        if isinstance(module, Hypercorrelation | GlobalModellingBlock | SelectiveScanBlock):
            module.operators = operators
