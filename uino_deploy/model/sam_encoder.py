"""Segment Anything's image encoder: the teacher of the bottleneck adapter.

Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643); its backbone is that of Li et al.,
"Exploring Plain Vision Transformer Backbones for Object Detection" (arXiv 2203.16527). Parameters
carry the names of the official checkpoints (`image_encoder.*`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.model.layers import LayerNorm2d
from uino_deploy.model.mask_decoder import MlpBlock

NORM_EPS = 1e-6
PATCH = 16


@dataclass(frozen=True)
class SamEncoderConfig:
    """The sizes of an image encoder; blocks count from 0, as in SAM's definition.

    Attributes:
        width: the width of the tokens.
        depth: the number of blocks.
        heads: the heads of every attention.
        global_blocks: the blocks that attend to the whole image; the others stay in windows.
        window: side of a window in tokens.
        image_size: side of the padded image in pixels.
        embedding: channels of the result.
    """

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    image_size: int = 1024
    embedding: int = 256

    @property
    def grid(self) -> int:
        """Tokens along one side of the image."""
        return self.image_size // PATCH


class RelativeAttention(nn.Module):
    """Self-attention over a plane, with learned embeddings of the distance along each axis."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.side = side
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, plane: Tensor) -> Tensor:
        """Map [B, side, side, width] -> [B, side, side, width]."""
        side, width = self.side, plane.shape[-1]
        heads = self.qkv(plane).reshape(-1, side * side, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, side**2, d]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self._bias(query))
        return self.proj(mixed.transpose(1, 2).reshape(-1, side, side, width))

    def _bias(self, query: Tensor) -> Tensor:
        """Return the distances' contribution to the scores, [B, heads, side**2, side**2].

        The embeddings multiply the unscaled query, as in SAM.
        """
        side = self.side
        place = torch.arange(side, device=query.device)
        distance = place[:, None] - place + side - 1
        plane = query.reshape(*query.shape[:2], side, side, -1)
        rows = torch.einsum("bnhwc,hkc->bnhwk", plane, self.rel_pos_h[distance].to(query.dtype))
        columns = torch.einsum("bnhwc,wkc->bnhwk", plane, self.rel_pos_w[distance].to(query.dtype))
        bias = rows[..., :, None] + columns[..., None, :]  # [B, heads, h, w, k_h, k_w]
        return bias.reshape(*query.shape[:2], side * side, side * side)


class SamBlock(nn.Module):
    """A pre-norm transformer block; attention over the whole plane or within windows."""

    def __init__(self, config: SamEncoderConfig, is_global: bool) -> None:
        super().__init__()
        self.window = 0 if is_global else config.window
        side = config.grid if is_global else config.window
        self.norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = RelativeAttention(config.width, config.heads, side)
        self.norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = _GeluMlp(config.width, 4 * config.width)

    def forward(self, plane: Tensor) -> Tensor:
        """Map [B, h, h, width] -> [B, h, h, width]."""
        normal = self.norm1(plane)
        plane = plane + (self._in_windows(normal) if self.window else self.attn(normal))
        return plane + self.mlp(self.norm2(plane))

    def _in_windows(self, plane: Tensor) -> Tensor:
        """Pad with zeros to whole windows, attend within each, and cut the padding off."""
        batch, grid, _, width = plane.shape
        window, more = self.window, -grid % self.window
        count = (grid + more) // window
        padded = F.pad(plane, (0, 0, 0, more, 0, more))
        split = padded.reshape(batch, count, window, count, window, width).transpose(2, 3)
        mixed = self.attn(split.reshape(-1, window, window, width))
        joined = mixed.reshape(batch, count, count, window, window, width).transpose(2, 3)
        return joined.reshape(batch, grid + more, grid + more, width)[:, :grid, :grid]


class _GeluMlp(MlpBlock):
    """The decoder's two linear layers, around a GELU."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [..., width] -> [..., width]."""
        return self.lin2(F.gelu(self.lin1(tokens)))


class _PatchEmbed(nn.Module):
    """Non-overlapping patches, each projected to a token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)

    def forward(self, image: Tensor) -> Tensor:
        """Map [B, 3, H, H] -> [B, H/16, H/16, width]."""
        return self.proj(image).permute(0, 2, 3, 1)


class SamImageEncoder(nn.Module):
    """SAM's image encoder.

    Args:
        config: the sizes.
    """

    def __init__(self, config: SamEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, embedding = config.width, config.embedding
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid, config.grid, width))
        self.patch_embed = _PatchEmbed(width)
        self.blocks = nn.ModuleList(
            SamBlock(config, number in config.global_blocks) for number in range(config.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(width, embedding, 1, bias=False),
            LayerNorm2d(embedding, eps=NORM_EPS),
            nn.Conv2d(embedding, embedding, 3, padding=1, bias=False),
            LayerNorm2d(embedding, eps=NORM_EPS),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Encode images.

        Args:
            image: [B, 3, H, H] with H = `config.image_size`, normalised and padded as SAM does.

        Returns:
            [B, embedding, H/16, H/16].
        """
        plane = self.patch_embed(image) + self.pos_embed
        for block in self.blocks:
            plane = block(plane)
        return self.neck(plane.permute(0, 3, 1, 2))
