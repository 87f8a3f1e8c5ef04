"""UINO-FSS: one frozen encoder, an adapter, a prompt generator and a mask decoder."""

from __future__ import annotations

from torch import Tensor, nn

from uino_deploy.config import UinoConfig
from uino_deploy.model.adapter import BottleneckAdapter
from uino_deploy.model.encoder import DinoVisionTransformer
from uino_deploy.model.mask_decoder import MaskDecoder
from uino_deploy.model.prompt_generator import PromptGenerator, SupportFeatures


class UinoFSS(nn.Module):
    """The reference model (arXiv 2504.15669); the exported pieces are its four parts.

    Args:
        config: sizes, variant and image size.
    """

    def __init__(self, config: UinoConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = DinoVisionTransformer(config.encoder)
        self.adapter = BottleneckAdapter(config.adapter, config.encoder.width, config.decoder.width)
        self.prompt_generator = PromptGenerator(config)
        self.decoder = MaskDecoder(config.decoder)

    def enroll(self, images: Tensor, masks: Tensor) -> SupportFeatures:
        """Encode a support set once for every later query.

        Args:
            images: [B, K, 3, H, H], normalised RGB.
            masks: [B, K, N], the share of each patch that is foreground, in [0, 1].
        """
        _, deep = self.encoder(images.flatten(0, 1))
        deep = deep.reshape(*images.shape[:2], *deep.shape[1:])
        return self.prompt_generator.support_features(deep, masks)

    def segment(self, image: Tensor, support: SupportFeatures) -> tuple[Tensor, Tensor]:
        """Segment queries with an enrolled support.

        Args:
            image: [B, 3, H, H], normalised RGB.
            support: features of B supports, or of one that serves all queries.

        Returns:
            logits [B, 1, 4h, 4w] and predicted IoU [B, 1].
        """
        early, deep = self.encoder(image)
        return self.decode(early, deep, support)

    def decode(
        self, early: Tensor, deep: Tensor, support: SupportFeatures
    ) -> tuple[Tensor, Tensor]:
        """Segment queries from the encoder's tokens of them; see `segment`."""
        dense = self.prompt_generator(deep, support.deep, support.weight, support.prototypes)
        logits, iou = self.decoder(self.adapter(early), support.sparse, dense)
        return logits, iou

    def forward(
        self, query_image: Tensor, support_images: Tensor, support_masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Segment queries [B, 3, H, H] with supports [B or 1, K, 3, H, H], [B or 1, K, N]."""
        return self.segment(query_image, self.enroll(support_images, support_masks))


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Return the parameter count of each part, of the segmenter, and of the whole.

    The segmenter is everything but the encoder, as the paper's tables count it.
    """
    parts = {name: _count(part) for name, part in model.named_children()}
    total = sum(parts.values())
    return {**parts, "segmenter": total - parts.get("encoder", 0), "total": total}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
