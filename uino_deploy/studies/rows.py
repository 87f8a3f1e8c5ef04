"""The rows of the paper's ablation tables, and the model of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from uino_deploy.config import Hypercorrelation, PromptConfig, UinoConfig, Variant

if TYPE_CHECKING:
    from uino_deploy.model.segmenter import UinoFSS

_VARIANTS: dict[Hypercorrelation, Variant] = {"none": "comp", "mhcm": "full", "cp4d": "cp4d"}


@dataclass(frozen=True)
class Row:
    """One row of the paper's ablation tables.

    Attributes:
        name: the row's name.
        against: the row to compare with; empty for the first.
        paper: the paper's mIoU, COCO-20i 1-shot.
        semantic: with SVP.
        hypercorrelation: MHCM, CP4D or none.
        contrastive: with CE.
        learning: the parts that learn.
        fresh_adapter: the adapter was not distilled, and learns with the rest.
        encoder_width: width of an encoder trained for this row; None for the base's encoder.
    """

    name: str
    against: str
    paper: float
    semantic: bool = True
    hypercorrelation: Hypercorrelation = "none"
    contrastive: bool = False
    learning: tuple[str, ...] = ("prompt_generator", "decoder")
    fresh_adapter: bool = False
    encoder_width: int | None = None

    def config(self, base: UinoConfig) -> UinoConfig:
        """Return the row's model, with the base's sizes."""
        prompt = replace(
            base.prompt,
            semantic=self.semantic,
            hypercorrelation=self.hypercorrelation,
            contrastive=self.contrastive,
        )
        encoder = base.encoder
        if self.encoder_width is not None:
            heads = self.encoder_width * encoder.heads // encoder.width
            encoder = replace(encoder, width=self.encoder_width, heads=heads)
        return with_prompt(replace(base, encoder=encoder), prompt)


def with_prompt(base: UinoConfig, prompt: PromptConfig) -> UinoConfig:
    """Return a model with other prompts, named after the closest variant."""
    return replace(base, prompt=prompt, variant=_VARIANTS[prompt.hypercorrelation])


def _with_encoder(width: int, against: str, paper: float) -> Row:
    """Return the compact model on an encoder of a width; the paper's are ViT-S, ViT-B and ViT-L."""
    learning = ("prompt_generator", "decoder", "adapter")
    name = f"compact, encoder {width} wide"
    return Row(name, against, paper, learning=learning, fresh_adapter=True, encoder_width=width)


ROWS = {
    "ba-pcs": Row("BA + PCS", "", 58.2, semantic=False),
    "svp": Row("+ SVP (compact)", "ba-pcs", 59.6),
    "mhcm": Row("+ MHCM", "svp", 62.3, hypercorrelation="mhcm"),
    "ce": Row("+ CE (full)", "mhcm", 64.5, hypercorrelation="mhcm", contrastive=True),
    "cp4d": Row("CP4D for MHCM", "ce", 64.0, hypercorrelation="cp4d", contrastive=True),
    "undistilled": Row(
        "compact, not distilled",
        "svp",
        52.8,
        learning=("prompt_generator", "decoder", "adapter"),
        fresh_adapter=True,
    ),
    "frozen": Row("compact, decoder frozen", "svp", 57.2, learning=("prompt_generator",)),
    "encoder-64": _with_encoder(64, "", 54.3),
    "encoder-128": _with_encoder(128, "encoder-64", 59.6),
    "encoder-192": _with_encoder(192, "encoder-128", 60.7),
}
"""The rows by the names of their folders, in the order of their runs."""


def new_model(base: UinoFSS, row: Row, seed: int) -> UinoFSS:
    """Return a row's model before any training: new prompts, the base's other parts.

    Args:
        base: the stand-in for everything pre-trained.
        row: the row.
        seed: the seed of the new weights.
    """
    import torch

    from uino_deploy.model.segmenter import UinoFSS

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UinoFSS(row.config(base.config))
    kept = ["decoder"]
    kept += [] if row.fresh_adapter else ["adapter"]
    kept += [] if row.encoder_width is not None else ["encoder"]
    for part in kept:
        model.get_submodule(part).load_state_dict(base.get_submodule(part).state_dict())
    return model.eval()
