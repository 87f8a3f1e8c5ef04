"""The frozen DINOv2 encoder: patch tokens after chosen blocks.

Source: Oquab et al., "DINOv2" (arXiv 2304.07193); Darcet et al., "Vision Transformers Need
Registers" (arXiv 2309.16588). Parameters carry the names of the official checkpoints.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.config import EncoderConfig
from uino_deploy.model.layers import Mlp, SelfAttention, to_tokens

NORM_EPS = 1e-6
INTERPOLATION_OFFSET = 0.1


class LayerScale(nn.Module):
    """LayerScale: a learned factor for every channel of a residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [..., width] -> [..., width]."""
        return tokens * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block with LayerScale."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = SelfAttention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.ls2 = LayerScale(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, N, width] -> [B, N, width]."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each projected to a token."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """Map [B, 3, H, W] -> [B, N, width], row-major."""
        return to_tokens(self.proj(image))


class DinoVisionTransformer(nn.Module):
    """DINOv2's vision transformer, returning the patch tokens that UINO-FSS reads.

    Args:
        config: sizes and the blocks to read.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.pretrained_grid**2, width))
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, width))
        self.patch_embed = PatchEmbed(width, config.patch)
        blocks = (Block(width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=0.02)

    def position_embedding(self, grid: int) -> Tensor:
        """Return the position embedding for a grid x grid image, [1, 1 + grid**2, width].

        It is resized as in the official code: bicubic, by a scale factor with an offset of 0.1 for
        models without registers; to size and antialiased for models with them
        (dinov2/models/vision_transformer.py and dinov2/hub/backbones.py).
        """
        side = self.config.pretrained_grid
        if grid == side:
            return self.pos_embed
        patches = self.pos_embed[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        if self.config.registers:
            resized = F.interpolate(patches, size=(grid, grid), mode="bicubic", antialias=True)
        else:
            scale = (grid + INTERPOLATION_OFFSET) / side
            resized = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], to_tokens(resized).to(self.pos_embed)], dim=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Encode normalised square images.

        Args:
            image: [B, 3, H, H], RGB normalised with ImageNet's mean and standard deviation.

        Returns:
            early: [B, N, width], the patch tokens after `early_layer`.
            deep: [B, L, N, width], the patch tokens after each of `correlation_layers`.
            The final LayerNorm is applied to all of them.
        """
        offsets = self.token_offsets(image.shape[-1] // self.config.patch)
        return self.transform(self.patch_embed(image), offsets)

    def transform(self, patches: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Run the blocks on embedded patches [B, N, width]; see `forward`, `token_offsets`."""
        special = 1 + self.config.registers
        # Padding and adding, instead of expanding to the batch, keeps shape tensors out of ONNX.
        tokens = F.pad(patches, (0, 0, special, 0)) + offsets
        last = max(self.config.early_layer, *self.config.correlation_layers)
        after: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks[:last], start=1):
            tokens = block(tokens)
            if number == self.config.early_layer or number in self.config.correlation_layers:
                after[number] = self.norm(tokens[:, special:])
        deep = torch.stack([after[number] for number in self.config.correlation_layers], dim=1)
        return after[self.config.early_layer], deep

    def token_offsets(self, grid: int) -> Tensor:
        """Return the offsets to add to the padded patches of a grid x grid image.

        Returns:
            [1, 1 + R + grid**2, width]: the class token with its position, the R registers, and
            the position of every patch.
        """
        positions = self.position_embedding(grid)
        special = [self.cls_token + positions[:, :1]]
        if self.config.registers:
            special.append(self.register_tokens)
        return torch.cat([*special, positions[:, 1:]], dim=1)
