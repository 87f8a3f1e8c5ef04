"""The float32 blocks of a bundle, run one after the other on images, with all that passes between.

A run with some blocks replaced starts at the first of them and computes only what depends on them:
everything before comes from the float32 run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from uino_deploy.bundle import Bundle
from uino_deploy.export.forecast.blocks import Block, read_blocks
from uino_deploy.images import preprocess_image, preprocess_mask
from uino_deploy.pipeline import CLASS, CLASS_AXIS, PIECES, producer, route_of

Array = npt.NDArray[Any]
UInt8 = npt.NDArray[np.uint8]
_FATAL_ONLY = 4


@dataclass(frozen=True)
class Sample:
    """A query and the shots of the class that is asked for.

    Attributes:
        name: for reports.
        image: uint8 RGB [H, W, 3].
        shots: images uint8 [H, W, 3] with masks uint8 [H, W] of 0 and 1.
    """

    name: str
    image: UInt8
    shots: Sequence[tuple[UInt8, UInt8]]


@dataclass
class _Images:
    """The distinct images of some samples, and which of them each sample takes."""

    inputs: list[Array] = field(default_factory=list)
    queries: list[int] = field(default_factory=list)
    shots: list[list[int]] = field(default_factory=list)
    masks: list[Array] = field(default_factory=list)


class Chain:
    """A bundle's blocks and their float32 results on some samples.

    Args:
        bundle: float32.
        samples: at least one.
        threads: of ONNX Runtime; one for each core if None.

    Raises:
        InputError: the bundle is not float32.
    """

    def __init__(
        self, bundle: Bundle, samples: Sequence[Sample], threads: int | None = None
    ) -> None:
        self.blocks = read_blocks(bundle)
        self.samples = samples
        self._threads = threads
        self._images = _prepared(bundle, samples)
        self._known: dict[tuple[int, str], Array] = {}
        self._own: dict[int, onnxruntime.InferenceSession] = {}
        self.run_reference()

    def run_reference(self) -> None:
        """Run every block in float32 and keep what it gives."""
        for number, block in enumerate(self.blocks):
            session = self._own[number] = self.open(block.model, whole=True)
            for place in self._places(block.piece):
                self._known |= self._outputs(session, block, place, self.inputs(block, place))

    def logits(self, sample: int) -> Array:
        """Return a sample's float32 logits, [1, 1, M, M]."""
        return self._known[sample, "decoder/logits"]

    def run(
        self, replaced: Mapping[int, onnx.ModelProto], samples: Sequence[int] | None = None
    ) -> list[Array]:
        """Run the samples with some blocks replaced.

        Args:
            replaced: models that take and give what the blocks of these numbers do.
            samples: numbers of the samples to run; all if None.

        Returns:
            The samples' logits.
        """
        wanted = list(range(len(self.samples)) if samples is None else samples)
        changed: dict[tuple[int, str], Array] = {}
        for number, block in enumerate(self.blocks):
            places = [p for p in self._places(block.piece, wanted)
                      if number in replaced or self._depends(block, p, changed)]  # fmt: skip
            if not places:
                continue
            session = self._own[number]
            if number in replaced:
                session = self.open(replaced[number])
            made: dict[tuple[int, str], Array] = {}
            for place in places:
                made |= self._outputs(session, block, place, self.inputs(block, place, changed))
            changed |= made
        return [changed.get((s, "decoder/logits"), self.logits(s)) for s in wanted]

    def places(self, block: Block) -> list[int]:
        """Return the numbers that a block runs for: of images in the encoder, else of samples."""
        return self._places(block.piece)

    def inputs(
        self, block: Block, place: int, changed: Mapping[tuple[int, str], Array] | None = None
    ) -> dict[str, Array]:
        """Return what a block takes, where it has changed and else from the float32 run."""
        return {name: self._value(block.piece, name, place, changed or {}) for name in block.takes}

    def open(self, model: onnx.ModelProto, whole: bool = False) -> onnxruntime.InferenceSession:
        """Open a model in ONNX Runtime; `whole` lets it fuse what is not rounded."""
        levels = onnxruntime.GraphOptimizationLevel
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        # Dozens of sessions stay open: arenas of their own would keep what each once needed.
        options.enable_cpu_mem_arena = False
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if whole else levels.ORT_ENABLE_BASIC
        )
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def _places(self, piece: str, samples: Iterable[int] | None = None) -> list[int]:
        wanted = list(range(len(self.samples)) if samples is None else samples)
        if piece != "encoder":
            return wanted
        images = [[self._images.queries[s], *self._images.shots[s]] for s in wanted]
        return sorted({image for each in images for image in each})

    def _depends(self, block: Block, place: int, changed: Mapping[tuple[int, str], Array]) -> bool:
        return any(
            source in changed
            for name in block.takes
            for source in self._sources(block.piece, name, place)
        )

    def _sources(self, piece: str, name: str, place: int) -> list[tuple[int, str]]:
        """Return where a block's input comes from: numbers and names of tensors."""
        if name not in PIECES[piece].inputs:
            return [(place, f"{piece}/{name}")]
        tensor = route_of(piece).name(name)
        maker = producer(tensor)
        if maker is None:
            return []
        if tensor == "support_deep":
            return [(image, "encoder/deep") for image in self._images.shots[place]]
        if maker == "encoder":
            edge = "deep" if tensor == "query_deep" else tensor
            return [(self._images.queries[place], f"encoder/{edge}")]
        return [(place, f"{maker}/{tensor}")]

    def _value(
        self, piece: str, name: str, place: int, changed: Mapping[tuple[int, str], Array]
    ) -> Array:
        found = [
            changed[source] if source in changed else self._known[source]
            for source in self._sources(piece, name, place)
        ]
        if name not in PIECES[piece].inputs:
            return found[0]
        if name == "image":
            return self._images.inputs[place]
        if name == "mask":
            return self._images.masks[place]
        tensor = route_of(piece).name(name)
        value = np.concatenate(found) if tensor == "support_deep" else found[0]
        return value[None] if tensor in CLASS_AXIS and piece not in CLASS.pieces else value

    def _outputs(
        self,
        session: onnxruntime.InferenceSession,
        block: Block,
        place: int,
        feeds: dict[str, Array],
    ) -> dict[tuple[int, str], Array]:
        arrays = session.run(list(block.gives), feeds)
        return {(place, f"{block.piece}/{n}"): a for n, a in zip(block.gives, arrays, strict=True)}


def _prepared(bundle: Bundle, samples: Sequence[Sample]) -> _Images:
    """Preprocess the samples' images, each once."""
    size, patch = bundle.config.image_size, bundle.config.encoder.patch
    found, numbers = _Images(), dict[int, int]()

    def number_of(image: UInt8) -> int:
        if id(image) not in numbers:
            numbers[id(image)] = len(found.inputs)
            found.inputs.append(preprocess_image(image, size)[None])
        return numbers[id(image)]

    for sample in samples:
        found.queries.append(number_of(sample.image))
        found.shots.append([number_of(image) for image, _ in sample.shots])
        masks = [preprocess_mask(mask, size, patch) for _, mask in sample.shots]
        found.masks.append(np.stack(masks))
    return found
