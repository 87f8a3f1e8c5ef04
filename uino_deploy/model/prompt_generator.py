"""The meta-visual prompt generator (MVPG): sparse and dense prompts from a support set.

Source: UINO-FSS (arXiv 2504.15669): SVP, PCS, CE and MHCM.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from uino_deploy.config import UinoConfig
from uino_deploy.model.hypercorrelation import Hypercorrelation
from uino_deploy.model.layers import Mlp, to_plane

EPS = 1e-6


class SupportFeatures(NamedTuple):
    """A class's features for a query; B is 1 if one support serves all queries.

    Attributes:
        deep: [B, K, L, N, D], the support tokens.
        weight: [B, K, N], how strongly each support token votes for (or against) the class.
        prototypes: [B, 2, D], mean foreground and mean background token of the last layer.
        sparse: [B, 2, E], the sparse prompt; None without SVP.
    """

    deep: Tensor
    weight: Tensor
    prototypes: Tensor
    sparse: Tensor | None


class SemanticPrompt(nn.Module):
    """SVP: prototypes through one shared MLP, plus an embedding of their type."""

    def __init__(self, width: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.mlp = Mlp(width, hidden, embedding)
        self.type_embedding = nn.Parameter(torch.zeros(2, embedding))
        nn.init.normal_(self.type_embedding, std=0.02)

    def forward(self, prototypes: Tensor) -> Tensor:
        """Map [B, 2, D] -> [B, 2, E]."""
        embedded: Tensor = self.mlp(prototypes)
        return embedded + self.type_embedding


class PromptGenerator(nn.Module):
    """The generator of support features, once per class, and of a dense prompt per query."""

    def __init__(self, config: UinoConfig) -> None:
        super().__init__()
        prompt, width = config.prompt, config.encoder.width
        embedding = config.decoder.width
        self.contrastive = prompt.contrastive
        self.semantic = (
            SemanticPrompt(width, prompt.semantic_hidden, embedding) if prompt.semantic else None
        )
        self.similarity = nn.Sequential(
            nn.Conv2d(1, prompt.similarity_channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(prompt.similarity_channels, embedding, 1),
        )
        self.hypercorrelation = (
            None
            if prompt.hypercorrelation == "none"
            else Hypercorrelation(prompt, len(config.encoder.correlation_layers), embedding)
        )

    def support_features(self, deep: Tensor, mask: Tensor) -> SupportFeatures:
        """Summarise a support set.

        Args:
            deep: [B, K, L, N, D], the encoder's deep tokens of the support images.
            mask: [B, K, N], the share of each patch that is foreground, in [0, 1].
        """
        foreground = _masked_mean(deep[:, :, -1], mask)
        background = _masked_mean(deep[:, :, -1], 1 - mask)
        prototypes = torch.stack([foreground, background], dim=1)
        weight = 2 * mask - 1 if self.contrastive else mask
        sparse = None if self.semantic is None else self.semantic(prototypes)
        return SupportFeatures(deep, weight.to(deep.dtype), prototypes, sparse)

    def similarity_map(self, deep: Tensor, prototypes: Tensor) -> Tensor:
        """Return PCS's map: cosine to the foreground prototype; under CE, minus the background's.

        Args:
            deep: [B, L, N, D], the query's tokens.
            prototypes: [B or 1, 2, D].

        Returns:
            [B, N], in [-1, 1], or [-2, 2] under CE.
        """
        cosine = _unit(deep[:, -1]) @ _unit(prototypes).transpose(1, 2)  # [B, N, 2]
        similarity = cosine[..., 0] - cosine[..., 1] if self.contrastive else cosine[..., 0]
        return similarity.to(deep.dtype)

    def similarity_prompt(self, similarity: Tensor) -> Tensor:
        """Map PCS's map [B, N] to its dense prompt [B, E, h, w]."""
        grid = round(similarity.shape[1] ** 0.5)
        prompt: Tensor = self.similarity(to_plane(similarity[..., None], grid, grid))
        return prompt

    def forward(
        self, deep: Tensor, support_deep: Tensor | None, weight: Tensor | None, prototypes: Tensor
    ) -> Tensor:
        """Return the dense prompt.

        Args:
            deep: [B, L, N, D], the query's tokens.
            support_deep: [B or 1, K, L, N, D]; unused, and may be None, in compact variants.
            weight: [B or 1, K, N]; likewise.
            prototypes: [B or 1, 2, D].

        Returns:
            [B, E, h, w].
        """
        dense = self.similarity_prompt(self.similarity_map(deep, prototypes))
        if self.hypercorrelation is None:
            return dense
        if support_deep is None or weight is None:
            raise ValueError("this variant correlates with the support's tokens: pass them")
        correlation: Tensor = self.hypercorrelation(deep, support_deep, weight)
        return dense + correlation


def _unit(tokens: Tensor) -> Tensor:
    """Scale tokens to length 1, in float32."""
    tokens = tokens.float()
    return tokens / tokens.norm(dim=-1, keepdim=True).clamp(min=EPS)


def _masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Average [B, K, N, D] with weights [B, K, N] -> [B, D], in float32."""
    weights = mask.float()[..., None]
    total = (tokens.float() * weights).sum(dim=(1, 2))
    return (total / weights.sum(dim=(1, 2)).clamp(min=EPS)).to(tokens.dtype)
