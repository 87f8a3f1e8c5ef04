"""SAM's mask decoder with a single output mask.

Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643), appendix A. Parameters carry the
names of the official checkpoints (`mask_decoder.*`; `pe_layer` is `prompt_encoder.pe_layer`).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.config import DecoderConfig
from uino_deploy.model.layers import LayerNorm2d, attention, to_tokens


class RandomFourierPosition(nn.Module):
    """The position encoding of a grid by random spatial frequencies."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features))

    def forward(self, grid: int) -> Tensor:
        """Return the encoding of the cell centres of a grid x grid plane, [1, grid**2, 2F]."""
        matrix = self.positional_encoding_gaussian_matrix.float()
        centres = (torch.arange(grid, device=matrix.device) + 0.5) / grid * 2 - 1
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        angles = 2 * math.pi * (torch.stack([x, y], dim=-1) @ matrix)  # [grid, grid, F]
        encoded = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return encoded.reshape(1, grid * grid, -1)


class Attention(nn.Module):
    """Attention between two token sets, internally `width / downsample` wide."""

    def __init__(self, width: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        self.heads = heads
        inner = width // downsample
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Map [B or 1, Nq, width], [B or 1, Nk, width] twice -> [B, Nq, width]."""
        mixed = attention(
            self._split(self.q_proj(q)), self._split(self.k_proj(k)), self._split(self.v_proj(v))
        )
        joined = mixed.transpose(1, 2).reshape(-1, q.shape[1], self.out_proj.in_features)
        return self.out_proj(joined)

    def _split(self, tokens: Tensor) -> Tensor:
        count, inner = tokens.shape[1:]
        return tokens.reshape(-1, count, self.heads, inner // self.heads).transpose(1, 2)


class MlpBlock(nn.Module):
    """Two linear layers around a ReLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [..., width] -> [..., width]."""
        return self.lin2(F.relu(self.lin1(tokens)))


class TwoWayAttentionBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, an MLP, image to tokens."""

    def __init__(self, config: DecoderConfig, first: bool) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.first = first
        self.self_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, heads, downsample=2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MlpBlock(width, config.feedforward)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, heads, downsample=2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Update tokens [B or 1, T, width] and image [B, N, width]."""
        if self.first:  # without position, and without the residual
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            positioned = tokens + token_pe
            tokens = tokens + self.self_attn(positioned, positioned, tokens)
        tokens = self.norm1(tokens)
        keys = image + image_pe
        attended = self.cross_attn_token_to_image(tokens + token_pe, keys, image)
        tokens = self.norm2(tokens + attended)
        tokens = self.norm3(tokens + self.mlp(tokens))
        attended = self.cross_attn_image_to_token(keys, tokens + token_pe, tokens)
        return tokens, self.norm4(image + attended)


class TwoWayTransformer(nn.Module):
    """Blocks of two-way attention, then attention from the tokens to the image."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        blocks = (TwoWayAttentionBlock(config, number == 0) for number in range(config.depth))
        self.layers = nn.ModuleList(blocks)
        self.final_attn_token_to_image = Attention(config.width, config.heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor, image: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Update tokens [B or 1, T, width] and image [B, N, width]."""
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image


class Perceptron(nn.Module):
    """Three linear layers with ReLUs between."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        sizes = [(width, hidden), (hidden, hidden), (hidden, out)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [..., width] -> [..., out]."""
        for layer in self.layers[:-1]:
            tokens = F.relu(layer(tokens))
        return self.layers[-1](tokens)


class MaskDecoder(nn.Module):
    """The decoder from prompts and an image embedding to one mask and its predicted IoU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width = config.width
        self.pe_layer = RandomFourierPosition(width // 2)
        self.transformer = TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(config.mask_tokens, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, stride=2),
            LayerNorm2d(width // 4, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            Perceptron(width, width, width // 8) for _ in range(config.mask_tokens)
        )
        self.iou_prediction_head = Perceptron(width, config.iou_hidden, config.mask_tokens)

    def forward(
        self, embedding: Tensor, sparse: Tensor | None, dense: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decode SAM's first mask, the one it gives for an unambiguous prompt.

        Args:
            embedding: [B, E, h, h], the image embedding.
            sparse: [B or 1, P, E], sparse prompts, or None.
            dense: [B, E, h, h], the dense prompt.

        Returns:
            logits: [B, 1, 4h, 4h]; above 0 is foreground.
            iou: [B, 1], the predicted IoU of the mask; it may leave the range 0 to 1.
        """
        grid = embedding.shape[-1]
        width = embedding.shape[1]
        position = self.pe_layer(grid).to(embedding.dtype)
        learned = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = _append(learned, sparse)
        tokens, image = self.transformer(tokens, to_tokens(embedding + dense), position)
        plane = image.transpose(1, 2).reshape(-1, width, grid, grid)
        upscaled = self.output_upscaling(plane)  # [B, E/8, 4h, 4h]
        kernel = self.output_hypernetworks_mlps[0](tokens[:, 1:2])  # [B, 1, E/8]
        logits = (kernel @ upscaled.flatten(2)).reshape(-1, 1, 4 * grid, 4 * grid)
        iou = self.iou_prediction_head(tokens[:, 0])[:, :1]
        return logits, iou


def _append(learned: Tensor, sparse: Tensor | None) -> Tensor:
    """Put the learned tokens [T, E] before each batch's sparse prompts [B or 1, P, E]."""
    if sparse is None:
        return learned[None]
    # Padding and adding, instead of expanding to the batch, keeps shape tensors out of ONNX.
    front = F.pad(learned, (0, 0, 0, sparse.shape[1]))
    return front + F.pad(sparse, (0, 0, learned.shape[0], 0))
