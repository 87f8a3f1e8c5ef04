"""`Predictor`, which segments images with a bundle: enroll, encode, predict."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload
from weakref import WeakKeyDictionary

import numpy as np

from uino_deploy.bundle import Bundle, Preprocess
from uino_deploy.bundle.presence import MIN_SCORE, calibrate, resemblance
from uino_deploy.bundle.signature import Required
from uino_deploy.bundle.support import Support, check_class_name, describe_model
from uino_deploy.errors import BundleError, CheckFailed, InputError
from uino_deploy.images import (
    Float32,
    UInt8,
    load_image,
    load_mask,
    preprocess_image,
    preprocess_mask,
    upsample_logits,
)
from uino_deploy.images.instances import Instances, find_instances
from uino_deploy.images.opening import Source
from uino_deploy.inputs import notice
from uino_deploy.pipeline import CLASS, QUERY, Route
from uino_deploy.runtime.backends import BackendOptions, open_backend
from uino_deploy.runtime.session import (
    Array,
    Backend,
    Session,
    Value,
    feeds_of,
    last_to_host,
    rows_of,
    run_pieces,
    run_to_host,
    to_host,
)

ImageSource = UInt8 | Source
MaskSource = Array | Source

# A query's pieces that run once per image, and those that run for each class.
_PER_IMAGE, _PER_CLASS = QUERY.split({"image"})
# An enrolment's pieces that run for each shot, and those that run once for all shots.
_PER_SHOT, _PER_SUPPORT = CLASS.split({"support_image"})
# Shots that a calibration looks for: each takes an enrolment from all others.
_CALIBRATED = 8


@dataclass(frozen=True, eq=False)
class Encoded:
    """A query image after the encoder and the adapter, for any number of classes.

    The features stay in the backend's memory, such as a GPU's, until this object is dropped.

    Attributes:
        features: the image's inputs to the other pieces of a query, under the names of
            `pipeline.QUERY`: query_deep [1, L, N, D] and embedding [1, E, h, w].
        height: the image's own height in pixels.
        width: the image's own width in pixels.
    """

    features: Mapping[str, Value]
    height: int
    width: int

    @cached_property
    def tokens(self) -> Array:
        """The encoder's tokens of the last layer, [N, D], in host memory."""
        return last_to_host(self.features["query_deep"])


@dataclass(frozen=True, eq=False)
class Result:
    """One class in one image.

    Attributes:
        name: the class's name.
        mask: uint8 [H, W] of 0 and 1, at the image's own size.
        score: predicted IoU, the decoder's prediction of the mask's IoU with the truth; it can
            fall outside 0 to 1.
        logits: float32 [4h, 4w], before upsampling to the image's size.
        presence: how likely the image shows the class, 0 to 1; None if the class was enrolled
            without a calibration.
        present: whether it is taken to; if not, the mask is empty. None without a calibration.
    """

    name: str
    mask: UInt8
    score: float
    logits: Float32
    presence: float | None = None
    present: bool | None = None

    @cached_property
    def instances(self) -> Instances:
        """The mask's objects, parted where they touch; computed when first asked for.

        Raises:
            DependencyError: scikit-image is not installed.
        """
        return find_instances(self.mask, self.logits, self.score)


class Predictor:
    """A bundle ready to segment; its pieces are loaded on first use.

    Any number of threads may use it at once: results are those of one thread alone. On a GPU they
    take turns.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        expected = Preprocess(size=bundle.config.image_size)
        if bundle.manifest.preprocess != expected:
            raise BundleError(
                f"{bundle.root} needs a preprocessing that this version does not have",
                "use the uino-deploy that exported it",
            )
        self.bundle = bundle
        self.backend = backend
        self._sessions: dict[str, Session] = {}
        self._lock = threading.RLock()
        # A class's inputs to a query, kept as long as someone holds the class.
        self._classes: WeakKeyDictionary[Support, dict[str, Value]] = WeakKeyDictionary()

    @classmethod
    def load(
        cls,
        path: str | Path,
        backend: str = "onnxruntime",
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        cuda_graphs: bool = False,
        require_signature: Required = None,
    ) -> Predictor:
        """Open and check a bundle.

        Args:
            path: the bundle's folder.
            backend: one of `uino_deploy.runtime.backends.BACKENDS`.
            providers: ONNX Runtime's, preferred first: cpu (the default), cuda, tensorrt,
                openvino, tensorrt-rtx; each may have options, `NAME:key=value,...`.
            threads: CPU threads; the backend's choice if None.
            cuda_graphs: record each piece's launches once and replay them (TensorRT backends).
            require_signature: a public key's file: the bundle, and the supports that
                `segment_folder` reads for it, must be signed by that key. None for the key that
                `UINO_DEPLOY_REQUIRE_SIGNATURE` names, if it is set; False for a bundle that this
                process has made.

        Raises:
            SignatureError: a required signature is missing or wrong.
            BundleError: the bundle is damaged, or the folder is not a bundle.
            InputError: the backend or provider is unknown, or the backend lacks an option.
            DependencyError: the backend or the provider is not installed.
        """
        made = open_backend(backend, BackendOptions(providers, threads, cuda_graphs))
        return cls(Bundle.open(path, require_signature=require_signature), made)

    def enroll(
        self,
        shots: Sequence[tuple[ImageSource, MaskSource]],
        name: str,
        negatives: Sequence[ImageSource] = (),
        calibrated: bool = True,
    ) -> Support:
        """Encode the support images of one class, once.

        The calibration, which tells present from absent, looks for each shot (the first eight) with
        the class enrolled from the others; for a single shot, in its mirror image.

        Args:
            shots: images (uint8 RGB [H, W, 3], or files, or what was received) and their masks
                ([H, W], non-zero is foreground, or files likewise) of the same size.
            name: the class's name.
            negatives: images that do not show the class; they sharpen the calibration.
            calibrated: whether to calibrate, which takes a query for each shot and each negative.

        Raises:
            InputError: there is no shot or more than the bundle allows, the name is not valid, or a
                shot's image or mask is unreadable, its mask is empty or full, or their sizes
                differ; the message names the shot.
        """
        check_class_name(name)
        self._check_count(name, len(shots))
        images, masks = zip(
            *(self._shot(number, *shot) for number, shot in enumerate(shots, 1)), strict=True
        )
        self._load((*_PER_SHOT, *_PER_SUPPORT))
        tokens = np.concatenate(
            [to_host(self._features(CLASS, each)["support_deep"]) for each in images]
        )
        shares = np.stack(masks)
        support = self._support(name, tokens, shares)
        if not calibrated:
            return support
        found = self._resemblances_of_shots(support, images, tokens, shares)
        others = [self._resemblance(self.encode(each), support) for each in negatives]
        if others and np.median(others) >= np.median(found):
            notice(
                "negatives",
                f"the negatives look as much like {name!r} as its shots do: what is said of its "
                "presence will be a guess",
            )
        return replace(support, calibration=calibrate(found, others))

    def _support(self, name: str, tokens: Array, shares: Float32) -> Support:
        """Summarise shots by their tokens [K, L, N, D] and the class's share of patches [K, N]."""
        known = {"support_deep": tokens, "mask": shares}
        made: dict[str, Any] = run_to_host(CLASS, map(self._session, _PER_SUPPORT), known)
        _check_finite(made, f"class {name!r}")
        manifest = self.bundle.manifest
        return Support(
            name=name,
            shots=len(tokens),
            precision=self.bundle.piece("encoder").precision,
            model=describe_model(manifest),
            fingerprint=manifest.fingerprint,
            preprocess=manifest.preprocess.fingerprint,
            deep=tokens if "support_deep" in self._taken(QUERY, _PER_CLASS) else None,
            **made,
        )

    def _resemblances_of_shots(
        self, support: Support, images: Sequence[Float32], tokens: Array, shares: Float32
    ) -> list[float]:
        """Find each shot by the others, or a single one in its mirror image."""
        if len(images) == 1:
            mirrored = np.ascontiguousarray(images[0][..., ::-1])
            return [self._resemblance(self._encoded(mirrored), support)]
        found = []
        for number, image in enumerate(images[:_CALIBRATED]):
            others = np.arange(len(images)) != number
            known = self._support(support.name, tokens[others], shares[others])
            found.append(self._resemblance(self._encoded(image), known))
        return found

    def encode(self, image: ImageSource) -> Encoded:
        """Run the encoder and the adapter on a query image.

        Args:
            image: uint8 RGB [H, W, 3], or a file.

        Raises:
            InputError: the image is unreadable, or an array of another type or shape.
        """
        return self.encode_all([image])[0]

    def encode_all(self, images: Sequence[ImageSource]) -> list[Encoded]:
        """Run the encoder and the adapter once for several query images, as one batch.

        The sums of a batch may be rounded otherwise than those of one image.

        Args:
            images: one or more, as in `encode`; no more than a TensorRT engine was built for.

        Raises:
            InputError: an image is unreadable, or an array of another type or shape.
        """
        pixels = [_image(each, "the image") for each in images]
        self._load(_PER_IMAGE)
        if len(pixels) == 1:
            return [self._encode(pixels[0])]
        made = self._features(QUERY, np.concatenate([self._preprocessed(each) for each in pixels]))
        rows = {name: rows_of(value) for name, value in made.items()}
        return [
            Encoded({name: row[index] for name, row in rows.items()}, *each.shape[:2])
            for index, each in enumerate(pixels)
        ]

    @overload
    def predict(
        self,
        image: ImageSource | Encoded,
        support: Support,
        threshold: float = 0.0,
        min_score: float = MIN_SCORE,
    ) -> Result: ...

    @overload
    def predict(
        self,
        image: ImageSource | Encoded,
        support: Sequence[Support],
        threshold: float = 0.0,
        min_score: float = MIN_SCORE,
    ) -> list[Result]: ...

    def predict(
        self,
        image: ImageSource | Encoded,
        support: Support | Sequence[Support],
        threshold: float = 0.0,
        min_score: float = MIN_SCORE,
    ) -> Result | list[Result]:
        """Segment one or several classes in an image with one pass of the encoder.

        Args:
            image: uint8 RGB [H, W, 3], a file, or the result of `encode`.
            support: a class, or several.
            threshold: logits above it are foreground.
            min_score: least presence of a class that is taken to be present, 0 to 1; the mask of
                an absent class is empty. 0 keeps every mask.

        Returns:
            A result for a class; a list of results, in their order, for several.

        Raises:
            InputError: the image is unreadable, a support was made by another model, or
                `threshold` or `min_score` is no number in its range.
            CheckFailed: the bundle computed numbers that are not finite.
        """
        check_threshold(threshold)
        check_min_score(min_score)
        supports = [support] if isinstance(support, Support) else list(support)
        for one in supports:
            one.check(self.bundle.manifest)
        if isinstance(image, Encoded):
            self._load(_PER_CLASS)
            query = image
        else:
            pixels = _image(image, "the image")
            self._load((*_PER_IMAGE, *_PER_CLASS))
            query = self._encode(pixels)
        for one in supports:
            self._class(one)  # below, several threads may need them at once
        results = self.backend.each(
            lambda one: self._segment(query, one, threshold, min_score), supports
        )
        return results[0] if isinstance(support, Support) else results

    def _encode(self, pixels: UInt8) -> Encoded:
        return self._encoded(self._preprocessed(pixels), *pixels.shape[:2])

    def _encoded(self, image: Float32, height: int = 1, width: int = 1) -> Encoded:
        """Encode a preprocessed image, [1, 3, S, S]."""
        self._load(_PER_IMAGE)
        return Encoded(self._features(QUERY, image), height, width)

    def _features(self, route: Route, image: Float32) -> dict[str, Value]:
        """Run the pieces of a route that need only the image; return the inputs of the others."""
        name = route.name("image")
        pieces, others = route.split({name})
        known = run_pieces(route, map(self._session, pieces), {name: image})
        return {name: known[name] for name in self._taken(route, others) & known.keys()}

    def _taken(self, route: Route, pieces: Sequence[str]) -> set[str]:
        """Return the inputs of some of this bundle's pieces, under the route's names."""
        edges = [edge for piece in pieces for edge in self.bundle.piece(piece).inputs]
        return {route.name(edge.name) for edge in edges}

    def _segment(
        self, query: Encoded, support: Support, threshold: float, min_score: float
    ) -> Result:
        logits, iou = self._decoded(query, support)
        presence = present = None
        if support.calibration is not None:
            alike = resemblance(logits, query.tokens, support.prototypes)
            presence = support.calibration.score(alike)
            present = presence >= min_score
        mask = upsample_logits(logits, query.height, query.width) > threshold
        if present is False:
            mask = np.zeros_like(mask)
        return Result(support.name, mask.astype(np.uint8), iou, logits, presence, present)

    def _decoded(self, query: Encoded, support: Support) -> tuple[Float32, float]:
        """Return the logits [4h, 4w] and the predicted IoU."""
        known = {**query.features, **self._class(support)}
        made = run_to_host(QUERY, map(self._session, _PER_CLASS), known)
        _check_finite(made, f"class {support.name!r}")
        return made["logits"][0, 0], float(made["iou"][0, 0])

    def _resemblance(self, query: Encoded, support: Support) -> float:
        self._load(_PER_CLASS)
        logits, _ = self._decoded(query, support)
        return resemblance(logits, query.tokens, support.prototypes)

    def _shot(self, number: int, image: ImageSource, mask: MaskSource) -> tuple[Float32, Float32]:
        """Return a preprocessed support image and its mask's fraction of each patch."""
        where = f"shot {number}"
        if isinstance(image, (str, Path)):
            where += f" ({Path(image).name})"
        pixels = _image(image, where)
        if isinstance(mask, Source):
            marked = load_mask(mask, image if isinstance(image, Source) else None)
        else:
            marked = np.asarray(mask)
        if marked.shape != pixels.shape[:2]:
            raise InputError(
                f"{where}: the mask has shape {marked.shape}, its image {pixels.shape[:2]}",
                "give a mask with its image's height and width",
            )
        shares = preprocess_mask(marked, self.bundle.config.image_size, self._patch)
        if not shares.any():
            raise InputError(f"{where}: the mask is empty", "mark the object with non-zero pixels")
        if shares.min() == 1:
            raise InputError(
                f"{where}: the mask covers the whole image", "leave the background at zero"
            )
        return self._preprocessed(pixels), shares

    def _check_count(self, name: str, shots: int) -> None:
        if not shots:
            raise InputError(f"class {name!r} has no shot", "give at least one image and its mask")
        limit = self.bundle.manifest.limits.get("shots", shots)
        if shots > limit:
            raise InputError(
                f"class {name!r} has {shots} shots; the bundle was exported for at most {limit}",
                "leave some out, or export with a larger --max-shots",
            )

    @property
    def _patch(self) -> int:
        return self.bundle.config.encoder.patch

    def _preprocessed(self, image: UInt8) -> Float32:
        return preprocess_image(image, self.bundle.config.image_size)[None]

    def _class(self, support: Support) -> dict[str, Value]:
        """Return a class's tensors, moved to the backend's memory on first use."""
        with self._lock:
            if support not in self._classes:
                uploaded: dict[str, Value] = {}
                for session in map(self._session, _PER_CLASS):
                    mine = feeds_of(QUERY, session, support.features)
                    uploaded |= QUERY.named(session.upload(mine))
                self._classes[support] = uploaded
            return self._classes[support]

    def _load(self, pieces: Sequence[str]) -> None:
        """Load the pieces that are not loaded yet."""
        with self._lock:
            missing = [piece for piece in pieces if piece not in self._sessions]
            if missing:
                self._sessions |= self.backend.load_all(self.bundle, missing)

    def _session(self, piece: str) -> Session:
        self._load((piece,))
        return self._sessions[piece]


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that no logit can be compared with.

    Raises:
        InputError: it is not finite.
    """
    if not math.isfinite(threshold):
        raise InputError(f"the threshold is {threshold}", "give a finite number; 0 is the default")


def check_min_score(min_score: float) -> None:
    """Refuse a least presence outside 0 to 1.

    Raises:
        InputError: it is outside, or no number.
    """
    if not 0 <= min_score <= 1:
        raise InputError(
            f"the least score is {min_score}", f"give 0 to 1; {MIN_SCORE:g} is the default"
        )


def label_map(results: Sequence[Result]) -> UInt8:
    """Merge the results of one image: the class with the highest logit wins each pixel.

    Args:
        results: up to 255 results of one image.

    Returns:
        uint8 [H, W]: 0 without a class, else 1 + the class's index in `results`.

    Raises:
        InputError: there are no results or more than 255, or their image sizes differ.
    """
    if not 1 <= len(results) <= 255:
        raise InputError(f"a label map holds 1 to 255 classes, not {len(results)}")
    if len({result.mask.shape for result in results}) > 1:
        raise InputError("the results are of images of different sizes")
    labels = np.zeros_like(results[0].mask)
    highest = np.full(labels.shape, -np.inf, np.float32)
    for index, result in enumerate(results, 1):
        logits = upsample_logits(result.logits, *labels.shape)
        wins = (result.mask != 0) & (logits > highest)
        labels[wins] = index
        highest[wins] = logits[wins]
    return labels


def _image(source: ImageSource, where: str) -> UInt8:
    if isinstance(source, Source):
        return load_image(source)
    if not isinstance(source, np.ndarray):
        raise InputError(
            f"{where} is a {type(source).__name__}",
            "give a file's path or uint8 RGB [H, W, 3], such as numpy.asarray(picture) of a PIL "
            "image in RGB",
        )
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
        raise InputError(
            f"{where} is {source.dtype} of shape {source.shape}", "give uint8 RGB [H, W, 3]"
        )
    return source


def _check_finite(arrays: Mapping[str, Array], what: str) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise CheckFailed(
                f"{what}: {name} contains numbers that are not finite",
                "this precision overflows on this image: export with --precision fp32",
            )
