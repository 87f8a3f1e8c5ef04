"""Segmentation of many images: masks, overlays and one line per image in a folder."""

from __future__ import annotations

import glob
import json
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uino_deploy.bundle import Bundle
from uino_deploy.bundle.presence import MIN_SCORE
from uino_deploy.bundle.support import Support
from uino_deploy.dependencies import require
from uino_deploy.errors import CheckFailed, InputError
from uino_deploy.files import atomic_directory, refuse_input
from uino_deploy.images import SUFFIXES, UInt8, check_image, class_colour, load_image, overlay
from uino_deploy.images.opening import UNREAD
from uino_deploy.inputs import few, find_file, nfc, notice, printable
from uino_deploy.progress import Progress, silent
from uino_deploy.runtime.instances_file import InstancesFile
from uino_deploy.runtime.predictor import (
    Predictor,
    Result,
    check_min_score,
    check_threshold,
    label_map,
)

# The longest side that libjpeg writes.
_JPEG_SIDE = 65500

# Bytes of an output's name, which leave room for a number and a suffix.
_NAME_BYTES = 240

RESULTS = "results.jsonl"
INSTANCES = "instances.json"

Record = dict[str, Any]


def segment_folder(
    predictor: Predictor,
    images: str | Path | Sequence[str | Path],
    supports: Sequence[str | Path | Support],
    folder: str | Path,
    *,
    threshold: float = 0.0,
    min_score: float = MIN_SCORE,
    instances: bool = False,
    draw: bool = True,
    force: bool = False,
    bits: int | None = None,
    fail_fast: bool = False,
    progress: Progress = silent,
) -> list[Record]:
    """Segment enrolled classes in images, and write the results into a new folder.

    The folder appears when all is done. An image that fails is a record with its error, and the
    others are kept; after any other error, nothing of the folder remains.

    Args:
        predictor: the bundle, loaded.
        images: files, folders or globs, as in `find_images`.
        supports: the classes, or the files that `enroll` wrote; each image is encoded once for all.
        folder: receives the files of `write_results`, and `results.jsonl`.
        threshold: logits above it are foreground.
        min_score: least presence of a class that is taken to be present; the mask of an absent one
            is empty. 0 keeps every mask.
        instances: also part the masks into objects, and write `instances.json`, in COCO's format.
        draw: also draw the masks over the images.
        force: replace the folder if an earlier run wrote it.
        bits: real depth of grey images of more than 8 bits; None to find it.
        fail_fast: stop at the first image that fails, and leave nothing.
        progress: called with "segmenting" and the number of images; enters a context whose value
            is called after each image.

    Returns:
        A record for each image, the lines of `results.jsonl`: `image` (its path), `seconds` (of
        `Predictor.predict`) and what `write_results` returns; or `image` and `error`.

    Raises:
        InputError: an input names no image, no image exists (with `fail_fast`: one is unreadable),
            a support is unreadable or another model's, two supports share a name, or `threshold` or
            `min_score` is not a number in its range.
        DependencyError: `instances` without scikit-image.
        OutputExists: the folder exists, and `force` is not given or no earlier run wrote it; or it
            holds an input.
        CheckFailed: the bundle computed numbers that are not finite, for all images (with
            `fail_fast`: for one).
    """
    check_threshold(threshold)
    check_min_score(min_score)
    if instances:
        require("instances", "skimage")
    given = [images] if isinstance(images, (str, Path)) else images
    paths = find_images([str(each) for each in given])
    if not any(os.path.lexists(find_file(path)) for path in paths):
        more = f", nor do {len(paths) - 1} others" if len(paths) > 1 else ""
        raise InputError(f"image {printable(paths[0])} does not exist{more}")
    classes = load_supports(supports, predictor.bundle)
    files = [each for each in supports if not isinstance(each, Support)]
    refuse_input(folder, [predictor.bundle.root, *files, *paths])
    with atomic_directory(Path(folder), force, marker=RESULTS) as made:
        objects = InstancesFile([each.name for each in classes]) if instances else None
        for path in paths if fail_fast else ():
            check_image(path)
        lines: list[Record] = []
        failures: list[Exception] = []
        with progress("segmenting", len(paths)) as step:
            for path, name in zip(paths, output_names(paths), strict=True):
                record: Record = {"image": printable(path)}
                try:
                    image = load_image(path, bits)
                    start = time.perf_counter()
                    results = predictor.predict(image, classes, threshold, min_score)
                    record["seconds"] = round(time.perf_counter() - start, 4)
                except (InputError, CheckFailed, MemoryError) as error:
                    if fail_fast:
                        raise
                    failures.append(error)
                    record["error"] = str(error) or "out of memory"
                else:
                    record |= write_results(made, name, image, results, draw, instances)
                    if objects is not None:
                        objects.add(record["image"], results)
                lines.append(record)
                step()
        if len(failures) == len(lines) and isinstance(failures[0], CheckFailed):
            raise failures[0]  # the bundle's fault, not the images'
        if len(failures) < len(lines):  # else there is nothing that lacks it
            _tell_uncalibrated(classes)
        if objects is not None:
            objects.write(made / INSTANCES)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        # A name that is no UTF-8 (legal on Linux) is written with JSON's own escapes.
        (made / RESULTS).write_text(text, encoding="utf-8", errors="backslashreplace")
    return lines


def _tell_uncalibrated(supports: Sequence[Support]) -> None:
    names = [support.name for support in supports if support.calibration is None]
    if names:
        notice(
            "uncalibrated supports",
            f"{', '.join(names)}: enrolled without a calibration, so nothing is said of whether an "
            "image shows it: enroll it again",
        )


def median_seconds(records: Sequence[Record]) -> float | None:
    """Return the median time of `Predictor.predict`; the first call also loads the pieces.

    None if no image was segmented.
    """
    seconds: list[float] = [record["seconds"] for record in records if "seconds" in record]
    return round(statistics.median(seconds), 4) if seconds else None


def load_supports(supports: Sequence[str | Path | Support], bundle: Bundle) -> list[Support]:
    """Read support files; check that this bundle made them and that their names differ.

    Raises:
        SignatureError: a file lacks the signature that the bundle had to have.
        InputError: a file is unreadable or belongs to another model, or two share a name.
    """
    taken: dict[str, object] = {}
    loaded = []
    for source in supports:
        if isinstance(source, Support):
            support = source
        else:
            support = Support.load(Path(source), bundle.require_signature)
        support.check(bundle.manifest)
        where = "a class" if isinstance(source, Support) else source
        key = nfc(support.name).casefold()  # some file systems take such names for one folder's
        if key in taken:
            raise InputError(
                f"{taken[key]} and {where} both hold a class named {support.name!r}",
                "enroll one of them again under another name",
            )
        taken[key] = where
        loaded.append(support)
    return loaded


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Return the images that files, folders and globs match, each once, in order.

    A folder gives the images directly in it, sorted; a glob those that it matches (`**` for any
    depth; a part that exists as it is written is taken so, brackets and all). Both look at the
    names' suffixes and name what they skip in a notice; a file is taken whatever its name.

    Raises:
        InputError: an input matches no image.
    """
    images: dict[str, Path] = {}
    for given in inputs:
        if not given:
            raise InputError("an input is empty", "name a file, a folder or a glob")
        path = find_file(Path(given))
        if os.path.isdir(path):  # pathlib raises for a name that is too long
            paths = _pictures(path.iterdir(), given)
        elif os.path.exists(path) or not glob.has_magic(given):
            paths = [path]
        else:
            matches = glob.glob(_literal_parts(given), recursive=True)
            paths = _pictures(map(Path, matches), given)
        if not paths:
            raise InputError(
                f"{printable(given)} contains no image", f"known are {' '.join(sorted(SUFFIXES))}"
            )
        for one in paths:
            images.setdefault(os.path.abspath(one), one)
    return list(images.values())


def output_names(images: Sequence[Path]) -> list[str]:
    """Return a file name without suffix for each image: its own, or with -2, -3, ... if taken.

    Bytes of a name that are not UTF-8 are written as %E9 and so on.
    """
    taken: set[str] = set()
    names = []
    for image in images:
        stem = printable(image.stem)
        if len(stem.encode()) > _NAME_BYTES:
            stem = stem.encode()[:_NAME_BYTES].decode(errors="ignore")
        name, count = stem, 1
        # Some file systems take a.png and A.png, or two forms of an accent, for one file.
        while nfc(name).casefold() in taken:
            count += 1
            name = f"{stem}-{count}"
        taken.add(nfc(name).casefold())
        names.append(name)
    return names


def write_results(
    folder: Path,
    name: str,
    image: UInt8,
    results: Sequence[Result],
    draw: bool = True,
    instances: bool = False,
) -> Record:
    """Write one image's results.

    Args:
        folder: receives `masks/CLASS/NAME.png` (0 and 255), for several classes `labels/NAME.png`
            (a palette image: 0, and 1 + the class's index), and `overlays/NAME.jpg`.
        name: file name without suffix.
        image: uint8 [H, W, 3].
        results: the image's, one or more.
        draw: write the overlay, unless the image is larger than JPEG allows.
        instances: also write `instances/CLASS/NAME.png` (0, and 1 + the object's index; 16 bits for
            more than 255 objects).

    Returns:
        What was written and found, for JSON; paths are relative to `folder`. `overlay_error` says
        why there is no overlay.
    """
    labels = label_map(results)
    record: Record = {"width": image.shape[1], "height": image.shape[0], "classes": []}
    for result in results:
        mask = Path("masks", result.name, f"{name}.png")
        _save(Image.fromarray(result.mask * np.uint8(255)), folder / mask)
        entry: Record = {
            "name": result.name,
            "present": result.present,
            "presence": None if result.presence is None else round(result.presence, 6),
            "score": round(result.score, 6),
            "area": round(float(result.mask.mean()), 6),
            "box": mask_box(result.mask),
            "mask": mask.as_posix(),
        }
        if instances:
            entry |= _write_instances(folder, name, result)
        record["classes"].append(entry)
    if len(results) > 1:
        record["labels"] = f"labels/{name}.png"
        _save(palette_image(labels), folder / record["labels"])
    if draw and max(labels.shape) > _JPEG_SIDE:
        record["overlay_error"] = f"JPEG holds at most {_JPEG_SIDE} pixels a side"
    elif draw:
        record["overlay"] = f"overlays/{name}.jpg"
        _save(Image.fromarray(draw_labels(image, labels)), folder / record["overlay"], quality=92)
    return record


def _write_instances(folder: Path, name: str, result: Result) -> Record:
    labels = Path("instances", result.name, f"{name}.png")
    _save(Image.fromarray(result.instances.labels), folder / labels)
    objects = [
        {"box": list(each.box), "area": each.area, "score": round(each.score, 6)}
        for each in result.instances.objects
    ]
    return {"instances": objects, "instance_labels": labels.as_posix()}


def draw_labels(image: UInt8, labels: UInt8) -> UInt8:
    """Return the image with each class of a label map drawn over it in its own colour."""
    drawn = image
    for value in np.unique(labels[labels != 0]):
        drawn = overlay(drawn, (labels == value).astype(np.uint8), class_colour(int(value) - 1))
    return drawn


def _pictures(paths: Iterable[Path], given: str) -> list[Path]:
    """Return the images among some paths, sorted; name the other files, but for hidden ones."""
    found, skipped = [], []
    for path in sorted(paths):
        if path.name.startswith(".") or path.is_dir():
            continue
        suffix = path.suffix.lower()
        if suffix in SUFFIXES and path.is_file():
            found.append(path)
        elif suffix in SUFFIXES:
            skipped.append(f"{printable(path.name)} (no regular file)")
        elif suffix in UNREAD:
            skipped.append(f"{printable(path.name)} (a format that is not read: convert it)")
        else:
            skipped.append(f"{printable(path.name)} (no image's suffix)")
    if skipped:
        skipped.sort(key=lambda text: text.endswith("suffix)"))
        notice("skipped files", f"{printable(given)}: skipped {few(skipped, 5)}")
    return found


def _literal_parts(pattern: str) -> str:
    """Escape the leading parts of a glob that exist as they are written, such as `[2024]`."""
    literal, escaped = Path(), Path()
    for part in Path(pattern).parts:
        literal /= part
        escaped /= glob.escape(part) if literal.exists() else part
    return str(escaped)


def _save(image: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def palette_image(labels: UInt8) -> Image.Image:
    """Return a label map, uint8 [H, W], as a picture: 0 is black, each class has its colour."""
    image = Image.fromarray(labels).convert("P")
    colours = [channel for index in range(255) for channel in class_colour(index)]
    image.putpalette([0, 0, 0, *colours])
    return image


def mask_box(mask: UInt8) -> list[int] | None:
    """Return left, top, right, bottom of the foreground, the last two exclusive; None if empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
