"""The model in PyTorch: the float32 reference for every entry, and the peers to beat."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
from uino_deploy.export.pieces import reference_pieces, run_modules
from uino_deploy.export.precision import in_precision
from uino_deploy.images import load_image, preprocess_image, preprocess_mask
from uino_deploy.model.checkpoint import load_checkpoint
from uino_deploy.model.hypercorrelation import use_operators
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.pipeline import CLASS, QUERY, Route, with_class_axis

# A class's inputs to a query, under the names of `pipeline.QUERY`.
Features = dict[str, Tensor]

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# From this opset on, bfloat16 needs no float32 convolutions; nothing is exported.
_ANY_OPSET = 99


class TorchRunner:
    """The model with the reference operators: the reference for every entry's accuracy."""

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
        self.pieces = reference_pieces(model)

    def about(self) -> dict[str, str]:
        """Return PyTorch's version and threads."""
        return {"torch": str(torch.__version__), "threads": str(torch.get_num_threads())}

    def enroll(self, shots: Sequence[Shot]) -> Features:
        """Enroll a class."""
        support = {
            "support_image": self._images([image for image, _ in shots]),
            # The mask's fractions of foreground are summed, so they stay float32.
            "mask": torch.stack([self._mask(mask) for _, mask in shots]),
        }
        with torch.inference_mode():
            made = self._run(CLASS, CLASS.pieces, support)
        return with_class_axis({name: made[name] for name in QUERY.ends.inputs if name in made})

    def save(self, enrolled: Features, path: Path) -> None:
        """Write the features."""
        torch.save(enrolled, path)

    def load(self, path: Path) -> Features:
        """Read features."""
        features: Features = torch.load(path, weights_only=True)
        return features

    def segment(
        self, queries: Sequence[Path | UInt8], classes: Sequence[Features]
    ) -> list[list[Found]]:
        """Segment; the pieces that need only the image run once for all classes."""
        images = [load_image(query) if isinstance(query, Path) else query for query in queries]
        results_by_image: list[list[Found]] = [[] for _ in images]
        once, each_class = QUERY.split({"image"})
        with torch.inference_mode():
            encoded = self._run(QUERY, once, {"image": self._images(images)})
            for support in classes:
                logits = self._run(QUERY, each_class, {**encoded, **support})["logits"].float()
                for image, plane, results in zip(images, logits, results_by_image, strict=True):
                    results.append(Found(upsampled_mask(plane, image), plane[0].numpy()))
        return results_by_image

    def stages(self, query: Path, enrolled: Features) -> dict[str, float]:
        """Time decoding, preprocessing, each piece of the model, and postprocessing."""
        times = [time.perf_counter()]
        with torch.inference_mode():
            image = load_image(query)
            times.append(time.perf_counter())
            known = {"image": self._images([image]), **enrolled}
            times.append(time.perf_counter())
            for piece in QUERY.pieces:
                known = self._run(QUERY, [piece], known)
                times.append(time.perf_counter())
            upsampled_mask(known["logits"][0].float(), image)
            times.append(time.perf_counter())
        names = ("decode", "preprocess", *QUERY.pieces, "postprocess")
        spans = (after - before for before, after in pairwise(times))
        return dict(zip(names, spans, strict=True))

    def _run(
        self, route: Route, pieces: Sequence[str], known: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return run_modules(route, [self.pieces[name] for name in pieces], known)

    def _images(self, images: Sequence[UInt8]) -> Tensor:
        pixels = np.stack([preprocess_image(image, self.size) for image in images])
        return torch.from_numpy(pixels).to(self.type)

    def _mask(self, mask: UInt8) -> Tensor:
        return torch.from_numpy(preprocess_mask(mask, self.size, self.patch))


class PlainTorchRunner(TorchRunner):
    """PyTorch eager, with operators as fast as plain torch can express them."""

    scan = staticmethod(plain_torch.scan_in_blocks)

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        use_operators(self.model, plain_torch.operators(self.scan))


class CompiledRunner(PlainTorchRunner):
    """torch.compile of a query's pieces; the scan's loop over thousands of steps stays eager.

    Another shape would take minutes to compile, so it supports one query and one shot only.
    """

    # Traced, the loop would be unrolled into a graph that takes an hour to compile.
    # torch leaves `disable` untyped.
    scan = staticmethod(torch.compiler.disable(plain_torch.scan_in_blocks))  # type: ignore[no-untyped-call]

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        if not _has_compiler():
            raise DependencyError("torch.compile needs a C++ compiler on a CPU", "install g++")
        for name in QUERY.pieces:
            self.pieces[name].module.compile(dynamic=False)

    def enroll(self, shots: Sequence[Shot]) -> Features:
        """Enroll a class of one shot."""
        if len(shots) != 1:
            raise CannotRun("compiled for one shot")
        return super().enroll(shots)

    def segment(
        self, queries: Sequence[Path | UInt8], classes: Sequence[Features]
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


def _has_compiler() -> bool:
    import shutil

    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))
