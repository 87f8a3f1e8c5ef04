"""Estimates of what a training takes: operations and bytes counted on the model, none measured.

The model is built and run on PyTorch's device `meta`, which computes shapes only. PyTorch counts
the multiplications and additions of matrix products and convolutions, and the bytes of the tensors
that the backward pass keeps; what our operators do inside themselves it does not see. Hours follow
from an assumed speed, `SPEED`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from uino_deploy.config import UinoConfig
from uino_deploy.model.sam_encoder import SamEncoderConfig, SamImageEncoder
from uino_deploy.model.segmenter import UinoFSS, parameter_counts
from uino_deploy.training.distillation import stage_sizes, up_to_early
from uino_deploy.training.episodic import LEARNING
from uino_deploy.training.samples import Sample, segment_samples
from uino_deploy.training.schedule import DISTILLATION, EPISODIC
from uino_deploy.training.token_cache import tokens_bytes

Result = TypeVar("Result")

SPEED = 100e12
"""Assumed operations per second: a third of what an A100's data sheet gives for bf16."""

BANDWIDTH = 1e12
"""Assumed bytes per second of the GPU's memory: half of what an A100's data sheet gives."""

PRESETS = ("vits14", "vitb14", "vitl14")
DISTILLED_IMAGES = 10_000
DISTILL_STEPS = 2000  # of each of the three stages
TRAIN_STEPS = 10_000  # on a large data set, which is not kept
FIFTY, FIFTY_STEPS = 50, 2000  # photographs, and steps on them

_TEACHER = SamEncoderConfig(1280, 32, 16, (7, 15, 23, 31))  # ViT-H


@dataclass(frozen=True)
class Step:
    """What a step of a training takes.

    Attributes:
        encoder: operations of the frozen encoder.
        rest: operations of all else, forward and backward.
        kept: bytes that the backward pass keeps.
        weights: bytes of the model's weights, of the learning ones' gradients and their averages.
    """

    encoder: int
    rest: int
    kept: int
    weights: int

    @property
    def memory(self) -> int:
        """Bytes of GPU memory."""
        return self.kept + self.weights

    def hours(self, steps: int, encoded: bool = True) -> float:
        """Return the hours of so many steps, with or without the encoder."""
        operations = self.rest + self.encoder * encoded
        return steps * (operations / SPEED + 4 * self.kept / BANDWIDTH) / 3600


def training_step(preset: str, batch: int = EPISODIC.batch) -> Step:
    """Count a one-shot step of `train --dataset` on the variant full.

    Args:
        preset: one of `config.PRESETS`.
        batch: episodes.
    """
    learning = LEARNING["full"]
    with torch.device("meta"):
        model = _model(preset, learning)
        image = torch.empty(1, 3, model.config.image_size, model.config.image_size)
        (early, deep), encoder, _ = _counted(lambda: model.encoder(image))
        masks = torch.empty(1, 1, model.config.tokens)
        sample = Sample(early, deep, deep[:, None], masks, torch.empty(0))
        _, rest, kept = _counted(lambda: _backward(*segment_samples(model, sample)))
    return Step(2 * batch * encoder, batch * rest, batch * kept, _weights(model, learning))


def distillation_steps(preset: str) -> list[Step]:
    """Count a step of each stage of `distill`; its teacher is left out."""
    steps, batch = [], DISTILLATION.batch
    with torch.device("meta"):
        model = _model(preset, ("adapter",))
        student = up_to_early(model.encoder)
        for side in stage_sizes(model.config):
            image = torch.empty(1, 3, side, side)
            (early, _), encoder, _ = _counted(partial(student, image))
            _, rest, kept = _counted(partial(_adapt, model, early))
            weights = _weights(model, ("adapter",))
            steps.append(Step(batch * encoder, batch * rest, batch * kept, weights))
    return steps


def teacher_operations() -> int:
    """Count the operations of Segment Anything's ViT-H on one image."""
    with torch.device("meta"):
        side = _TEACHER.image_size
        teacher = SamImageEncoder(_TEACHER).requires_grad_(False)
        return _counted(lambda: teacher(torch.empty(1, 3, side, side)))[1]


def estimates() -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of the table of docs/training.md."""
    columns = ["preset", "command", "operations a step", "hours", "GPU memory", "disk"]
    rows = []
    teaching = DISTILLED_IMAGES * teacher_operations() / SPEED / 3600
    embeddings = DISTILLED_IMAGES * 2 * _TEACHER.embedding * _TEACHER.grid**2
    for preset in PRESETS:
        stages, step = distillation_steps(preset), training_step(preset)
        largest = stages[-1]
        tokens = 2 * FIFTY * tokens_bytes(UinoConfig.from_preset(preset))
        for command, operations, hours, memory, disk in (
            (
                "`distill`", largest.encoder + largest.rest,
                teaching + sum(each.hours(DISTILL_STEPS) for each in stages),
                largest.memory, f"{embeddings / 1e9:.1f} GB",
            ),
            ("`train`", step.encoder + step.rest, step.hours(TRAIN_STEPS), step.memory, "-"),
            (
                "`train`, kept tokens", step.rest, step.hours(FIFTY_STEPS, encoded=False),
                step.memory, f"{tokens / 1e9:.1f} GB",
            ),
        ):  # fmt: skip
            row = [f"{operations / 1e12:.2f} T", f"{hours:.2f}", f"{memory / 1e9:.1f} GB", disk]
            rows.append([preset, command, *row])
    return columns, rows


def _model(preset: str, learning: Sequence[str]) -> UinoFSS:
    model = UinoFSS(UinoConfig.from_preset(preset)).requires_grad_(False)
    for name in learning:
        model.get_submodule(name).requires_grad_(True)
    return model.train()


def _counted(work: Callable[[], Result]) -> tuple[Result, int, int]:
    """Do some work; return its result, its operations, and the bytes kept for its gradients."""
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    return result, int(counter.get_total_flops()), sum(each.nbytes() for each in kept.values())


def _adapt(model: UinoFSS, early: Tensor) -> None:
    _backward(model.adapter(early))


def _backward(*outputs: Tensor) -> None:
    torch.autograd.backward([output.sum() for output in outputs])


def _weights(model: UinoFSS, learning: Sequence[str]) -> int:
    """Return the bytes of a model's weights, and of gradients and AdamW's two averages."""
    counts = parameter_counts(model)
    return 4 * (counts["total"] + 3 * sum(counts[name] for name in learning))
