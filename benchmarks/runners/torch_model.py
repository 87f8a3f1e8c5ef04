"""The model in PyTorch: the float32 reference that all are judged by, and the peers to beat."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.benchmarks.runners import plain_torch
from uino_deploy.benchmarks.runners.runner import CannotRun, Found, Task
from uino_deploy.benchmarks.work import Shot, UInt8
from uino_deploy.errors import DependencyError
from uino_deploy.export.precision import in_precision
from uino_deploy.images import load_image, preprocess_image, preprocess_mask
from uino_deploy.model import hypercorrelation
from uino_deploy.model.checkpoint import load_checkpoint
from uino_deploy.model.prompt_generator import SupportFeatures
from uino_deploy.model.segmenter import UinoFSS

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# From this opset on, bfloat16 needs no detour through float32 convolutions; nothing is exported.
_ANY_OPSET = 99


class TorchRunner:
    """The model as it is, its operators the literal references: the accuracy's reference."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        self.type = _TYPES[task.precision]
        model = load_checkpoint(Path(task.model or "")).eval()
        self.size, self.patch = task.image_size, model.config.encoder.patch
        if task.precision != "fp32":
            converted = in_precision(model, "bf16", _ANY_OPSET)
            if not isinstance(converted, UinoFSS):
                raise TypeError(f"the converted model is a {type(converted).__name__}")
            model = converted
        self.model = model
        self.encode = model.encoder.__call__
        self.adapt = model.adapter.__call__
        self.prompt = model.prompt_generator.__call__
        self.decode = model.decoder.__call__

    def about(self) -> dict[str, str]:
        """Return PyTorch's version and threads."""
        return {"torch": torch.__version__, "threads": str(torch.get_num_threads())}

    def enroll(self, shots: Sequence[Shot]) -> SupportFeatures:
        """Enroll a class."""
        images = self._images([image for image, _ in shots])
        masks = torch.stack([self._mask(mask) for _, mask in shots])
        with torch.inference_mode():
            _, deep = self.encode(images)
            # The mask's shares of foreground are summed: they stay float32.
            return self.model.prompt_generator.support_features(deep[None], masks[None])

    def save(self, enrolled: SupportFeatures, path: Path) -> None:
        """Write the features."""
        torch.save(dict(zip(enrolled._fields, enrolled, strict=True)), path)

    def load(self, path: Path) -> SupportFeatures:
        """Read features."""
        return SupportFeatures(**torch.load(path, weights_only=True))

    def segment(
        self, queries: Sequence[Path | UInt8], classes: Sequence[SupportFeatures]
    ) -> list[list[Found]]:
        """Segment; the encoder and the adapter run once for all classes."""
        images = [load_image(query) if isinstance(query, Path) else query for query in queries]
        found: list[list[Found]] = [[] for _ in images]
        with torch.inference_mode():
            early, deep = self.encode(self._images(images))
            embedding = self.adapt(early)
            for support in classes:
                dense = self.prompt(deep, support.deep, support.weight, support.prototypes)
                logits, _ = self.decode(embedding, support.sparse, dense)
                for image, plane, results in zip(images, logits.float(), found, strict=True):
                    results.append(Found(upsampled_mask(plane, image), plane[0].numpy()))
        return found

    def stages(self, query: Path, enrolled: SupportFeatures) -> dict[str, float]:
        """Time decoding, preprocessing, each part of the model, and what follows."""
        times = [time.perf_counter()]
        with torch.inference_mode():
            image = load_image(query)
            times.append(time.perf_counter())
            pixels = self._images([image])
            times.append(time.perf_counter())
            early, deep = self.encode(pixels)
            times.append(time.perf_counter())
            embedding = self.adapt(early)
            times.append(time.perf_counter())
            dense = self.prompt(deep, enrolled.deep, enrolled.weight, enrolled.prototypes)
            times.append(time.perf_counter())
            logits, _ = self.decode(embedding, enrolled.sparse, dense)
            times.append(time.perf_counter())
            upsampled_mask(logits[0].float(), image)
            times.append(time.perf_counter())
        names = ("decode", "preprocess", "encoder", "adapter", "prompt", "decoder", "postprocess")
        spans = (after - before for before, after in pairwise(times))
        return dict(zip(names, spans, strict=True))

    def _images(self, images: Sequence[UInt8]) -> Tensor:
        pixels = np.stack([preprocess_image(image, self.size) for image in images])
        return torch.from_numpy(pixels).to(self.type)

    def _mask(self, mask: UInt8) -> Tensor:
        return torch.from_numpy(preprocess_mask(mask, self.size, self.patch))


class PlainTorchRunner(TorchRunner):
    """PyTorch eager with the operators as well as plain torch can express them."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        use_operators(scan=plain_torch.scan_in_blocks)


class CompiledRunner(PlainTorchRunner):
    """torch.compile of the four parts; the scan's loop over some thousand steps stays eager.

    Every further shape would be compiled anew, for minutes: it has one query and one shot.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        if not _has_compiler():
            raise DependencyError("torch.compile needs a C++ compiler on a CPU", "install g++")
        # Traced, the loop would be unrolled into a graph that takes an hour to compile.
        # torch leaves `disable` untyped.
        scan = torch.compiler.disable(plain_torch.scan_in_blocks)  # type: ignore[no-untyped-call]
        use_operators(scan=scan)
        self.encode = torch.compile(self.model.encoder, dynamic=False)
        self.adapt = torch.compile(self.model.adapter, dynamic=False)
        self.prompt = torch.compile(self.model.prompt_generator, dynamic=False)
        self.decode = torch.compile(self.model.decoder, dynamic=False)

    def enroll(self, shots: Sequence[Shot]) -> SupportFeatures:
        """Enroll a class of one shot."""
        if len(shots) != 1:
            raise CannotRun("compiled for one shot")
        return super().enroll(shots)

    def segment(
        self, queries: Sequence[Path | UInt8], classes: Sequence[SupportFeatures]
    ) -> list[list[Found]]:
        """Segment one query; see `TorchRunner.segment`."""
        if len(queries) != 1:
            raise CannotRun("compiled for one query")
        return super().segment(queries, classes)


def upsampled_mask(plane: Tensor, image: UInt8) -> UInt8:
    """Return the mask [H, W] at the image's own size of logits [1, 4h, 4w]."""
    height, width = image.shape[:2]
    resized = F.interpolate(plane[None], (height, width), mode="bilinear")
    mask: UInt8 = (resized[0, 0] > 0).to(torch.uint8).numpy()
    return mask


def use_operators(scan: object) -> None:
    """Replace the model's operators in this process, which runs nothing else."""
    vars(hypercorrelation).update(correlation4d=plain_torch.correlation4d, selective_scan2d=scan)


def _has_compiler() -> bool:
    import shutil

    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))
