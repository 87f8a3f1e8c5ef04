"""Losses: classification, the prototypes' similarity map, and the segmented mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.training.batches import NO_CLASS, Batch

_COVERED = 0.25  # least fraction of a patch that a thing must cover to own its token


class Classifier(nn.Module):
    """A cosine classifier of encoder tokens: the classes, then the background.

    The segmenter compares tokens by their cosines, so that is what the encoder is taught by.

    Args:
        width: of a token.
        classes: the number of classes.
        families: of each class the number of its family, such as birds. To know it as well is a
            second task: what all birds share is of use for a bird that no step has shown.
    """

    _family: Tensor | None

    def __init__(self, width: int, classes: int, families: Sequence[int] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes + 1, width) * width**-0.5)
        self.scale = nn.Parameter(torch.tensor(16.0))
        family = None if families is None else torch.tensor(families)
        self.register_buffer("_family", family, persistent=False)
        if families is not None:
            self.kinds = nn.Parameter(torch.randn(max(families) + 1, width) * width**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Map [..., width] -> logits [..., classes + 1]."""
        return self._logits(features, self.weight)

    def _logits(self, features: Tensor, weight: Tensor) -> Tensor:
        directions = F.normalize(weight, dim=-1)
        return self.scale * (F.normalize(features.float(), dim=-1) @ directions.T)

    def loss(self, tokens: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of pooled things, also by family, plus half of single tokens'.

        Args:
            tokens: [2B, N, D], the encoder's last deep layer.
            batch: the scenes they come from.
        """
        total = batch.shares.sum(dim=-1, keepdim=True).clamp(min=1e-6)
        pooled = (batch.shares / total @ tokens.float()).flatten(0, 1)  # [2B * G, width]
        labels = batch.labels.flatten()
        thing_loss = F.cross_entropy(self(pooled), labels, ignore_index=NO_CLASS)
        if self._family is not None:
            family = torch.where(labels == NO_CLASS, NO_CLASS, self._family[labels])
            kinds = self._logits(pooled, self.kinds)
            thing_loss = thing_loss + F.cross_entropy(kinds, family, ignore_index=NO_CLASS)
        share, thing = batch.shares.max(dim=1)  # [2B, N]
        label = batch.labels.gather(1, thing)
        label = torch.where(share >= _COVERED, label, len(self.weight) - 1)
        token_loss = F.cross_entropy(self(tokens).flatten(0, 1), label.flatten())
        return thing_loss + 0.5 * token_loss


class SimilarityReadout(nn.Module):
    """Turns PCS's similarity map into logits, so that the prototypes can be trained directly."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(5.0))
        self.bias = nn.Parameter(torch.tensor(0.0))

    def loss(self, similarity: Tensor, share: Tensor) -> Tensor:
        """Return the binary cross-entropy of similarity and target share, both [B, N]."""
        logits = similarity.float() * self.scale + self.bias
        return F.binary_cross_entropy_with_logits(logits, share)


def mask_loss(logits: Tensor, iou: Tensor, truth: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return 2 * BCE + Dice of the mask, plus the squared error of the predicted IoU.

    Where the target is absent, the loss is that of `absent_loss`.

    Args:
        logits: [B, 1, h, w].
        iou: [B, 1], the predicted IoU.
        truth: [B, S, S], 0 or 1; all 0 where the target is absent.
        counted: bool [B, S, S], the pixels that count; all if None. The loss is a mean over
            images, so that its mean over processes equals the loss of their joint batch.
    """
    logits = F.interpolate(logits.float(), size=truth.shape[-2:], mode="bilinear")[:, 0]
    share = logits.sigmoid()
    bce = _bce(logits, truth, counted)
    if counted is not None:
        # Below, ignored pixels get a confident, correct prediction.
        logits, share, truth = (plane * counted for plane in (logits, share, truth))
    overlap = (share * truth).sum(dim=(1, 2))
    dice = 1 - (2 * overlap + 1) / (share.sum(dim=(1, 2)) + truth.sum(dim=(1, 2)) + 1)
    predicted, real = logits.detach() > 0, truth > 0
    actual = (predicted & real).sum(dim=(1, 2)) / (predicted | real).sum(dim=(1, 2)).clamp(min=1)
    found = 2 * bce + dice + (iou[:, 0].float() - actual) ** 2
    return torch.where(real.any(dim=2).any(dim=1), found, absent_loss(bce, iou)).mean()


def absent_loss(bce: Tensor, iou: Tensor) -> Tensor:
    """Return the loss of queries that do not show the target: an empty mask of IoU 0 is right.

    There is no Dice: without a true pixel it is nearly 1 until nothing at all is marked.

    Args:
        bce: [B], the mask's cross-entropy with the empty mask.
        iou: [B, 1], the predicted IoU.

    Returns:
        [B].
    """
    return 2 * bce + iou[:, 0].float() ** 2


def _bce(logits: Tensor, truth: Tensor, counted: Tensor | None) -> Tensor:
    """Return the mean over the counted pixels of each image, from [B, S, S] -> [B]."""
    bce = F.binary_cross_entropy_with_logits(logits, truth, weight=counted, reduction="none")
    if counted is None:
        return bce.mean(dim=(1, 2))
    return bce.sum(dim=(1, 2)) / counted.sum(dim=(1, 2)).clamp(min=1)
