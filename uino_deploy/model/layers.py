"""Layers shared by the encoder, the adapter and the decoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(query @ key^T / sqrt(d)) @ value.

    On export it becomes two matrix products around a Softmax, the form that inference engines fuse,
    and batches of 1 broadcast without an Expand. In eager mode it is PyTorch's own.

    Args:
        query: [B or 1, heads, Nq, d].
        key: [B or 1, heads, Nk, d].
        value: [B or 1, heads, Nk, d].

    Returns:
        [B, heads, Nq, d].
    """
    if torch.compiler.is_exporting():
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return scores.softmax(dim=-1) @ value
    batch = max(query.shape[0], key.shape[0])
    query, key, value = (t.expand(batch, -1, -1, -1) for t in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, N, width] -> [B, N, width]."""
        count, width = tokens.shape[1:]
        heads = self.qkv(tokens).reshape(-1, count, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(-1, count, width))


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width if out is None else out)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [..., width] -> [..., out]."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W], exported as one LayerNormalization."""

    def forward(self, planes: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C, H, W]."""
        return super().forward(planes.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def to_plane(tokens: Tensor, height: int, width: int) -> Tensor:
    """Map [B, height*width, C] -> [B, C, height, width]."""
    return tokens.transpose(1, 2).reshape(-1, tokens.shape[2], height, width)


def to_tokens(plane: Tensor) -> Tensor:
    """Map [B, C, height, width] -> [B, height*width, C]."""
    return plane.flatten(2).transpose(1, 2)
