"""The bottleneck adapter, which maps early encoder tokens to an embedding in place of SAM's.

Source: UINO-FSS (arXiv 2504.15669), section on hierarchical distillation.
"""

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.config import AdapterConfig
from uino_deploy.model.layers import Mlp, SelfAttention, to_plane, to_tokens


class AdapterBlock(nn.Module):
    """A pre-norm self-attention block of the bottleneck's width."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, feedforward)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, N, width] -> [B, N, width]."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class BottleneckAdapter(nn.Module):
    """Convolutions, a narrow pair of attention blocks, and a projection to the decoder's width."""

    def __init__(self, config: AdapterConfig, encoder_width: int, embedding: int) -> None:
        super().__init__()
        hidden, narrow = config.hidden, config.bottleneck
        self.reduce = nn.Conv2d(encoder_width, hidden, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(hidden)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.mix_norm = nn.BatchNorm2d(hidden)
        self.squeeze = nn.Conv2d(hidden, narrow, 1, bias=False)
        self.squeeze_norm = nn.BatchNorm2d(narrow)
        self.blocks = nn.Sequential(
            *(AdapterBlock(narrow, config.heads, config.feedforward) for _ in range(config.depth))
        )
        self.expand = nn.Conv2d(narrow, embedding, 1)

    def forward(self, early: Tensor) -> Tensor:
        """Adapt tokens [B, h*w, encoder width] to an embedding [B, E, h, w]; h = w."""
        grid = round(early.shape[1] ** 0.5)
        plane = to_plane(early, grid, grid)
        plane = F.gelu(self.reduce_norm(self.reduce(plane)))
        plane = F.gelu(self.mix_norm(self.mix(plane)))
        plane = F.gelu(self.squeeze_norm(self.squeeze(plane)))
        tokens = self.blocks(to_tokens(plane))
        return self.expand(to_plane(tokens, grid, grid))
