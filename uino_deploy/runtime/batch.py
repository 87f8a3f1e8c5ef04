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

from uino_deploy.bundle import Manifest
from uino_deploy.bundle.support import Support
from uino_deploy.errors import InputError
from uino_deploy.files import atomic_directory
from uino_deploy.images import UInt8, check_image, class_colour, load_image, overlay
from uino_deploy.progress import Progress, silent
from uino_deploy.runtime.predictor import Predictor, Result, check_threshold, label_map

SUFFIXES = {
    ".bmp",
    ".gif",
    ".jp2",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
}


RESULTS = "results.jsonl"

Record = dict[str, Any]


def segment_folder(
    predictor: Predictor,
    images: str | Path | Sequence[str | Path],
    supports: Sequence[str | Path | Support],
    folder: str | Path,
    *,
    threshold: float = 0.0,
    draw: bool = True,
    force: bool = False,
    progress: Progress = silent,
) -> list[Record]:
    """Segment enrolled classes in images, and write the results into a new folder.

    The folder appears whole or not at all.

    Args:
        predictor: the bundle, loaded.
        images: files, folders or globs, as in `find_images`.
        supports: the classes, or the files that `enroll` wrote; each image is encoded once for all.
        folder: receives the files of `write_results`, and `results.jsonl`.
        threshold: logits above it are foreground.
        draw: also draw the masks over the images.
        force: replace the folder if an earlier run wrote it.
        progress: called with "segmenting" and the number of images; enters a context whose value
            is called after each image.

    Returns:
        A record for each image, the lines of `results.jsonl`: `image` (its path), `seconds` (of
        `Predictor.predict`) and the fields that `write_results` returns.

    Raises:
        InputError: an input matches no image, an image or a support is unreadable, a support
            belongs to another model, two supports share a name, or the threshold is not finite.
        OutputExists: the folder exists, and `force` is not given or no earlier run wrote it.
        CheckFailed: the bundle computed numbers that are not finite.
    """
    check_threshold(threshold)
    given = [images] if isinstance(images, (str, Path)) else images
    paths = find_images([str(each) for each in given])
    with atomic_directory(Path(folder), force, marker=RESULTS) as made:
        for path in paths:
            check_image(path)
        classes = load_supports(supports, predictor.bundle.manifest)
        lines = []
        with progress("segmenting", len(paths)) as step:
            for path, name in zip(paths, output_names(paths), strict=True):
                image = load_image(path)
                start = time.perf_counter()
                results = predictor.predict(image, classes, threshold)
                seconds = round(time.perf_counter() - start, 4)
                written = write_results(made, name, image, results, draw)
                lines.append({"image": str(path), "seconds": seconds, **written})
                step()
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (made / RESULTS).write_text(text, encoding="utf-8")
    return lines


def median_seconds(records: Sequence[Record]) -> float:
    """Return the median time of `Predictor.predict`; the first call also loads the pieces."""
    seconds: list[float] = [record["seconds"] for record in records]
    return round(statistics.median(seconds), 4)


def load_supports(supports: Sequence[str | Path | Support], manifest: Manifest) -> list[Support]:
    """Read support files; check that this bundle made them and that their names differ.

    Raises:
        InputError: a file is unreadable or belongs to another model, or two share a name.
    """
    taken: dict[str, object] = {}
    loaded = []
    for source in supports:
        support = source if isinstance(source, Support) else Support.load(Path(source))
        support.check(manifest)
        where = "a class" if isinstance(source, Support) else source
        key = support.name.casefold()
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

    A folder gives the images directly in it, sorted; a glob gives its matches (`**` for any depth).
    Both select by suffix; a file is taken whatever its name.

    Raises:
        InputError: an input matches no image.
    """
    images: dict[str, Path] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            paths = _pictures(path.iterdir())
        elif path.exists() or not glob.has_magic(given):
            paths = [path]
        else:
            paths = _pictures(Path(match) for match in glob.glob(given, recursive=True))
        if not paths:
            raise InputError(
                f"{given} contains no image", f"known suffixes: {' '.join(sorted(SUFFIXES))}"
            )
        for one in paths:
            images.setdefault(os.path.abspath(one), one)
    return list(images.values())


def output_names(images: Sequence[Path]) -> list[str]:
    """Return a file name without suffix for each image: its own, or with -2, -3, ... if taken."""
    taken: set[str] = set()
    names = []
    for image in images:
        name, count = image.stem, 1
        # On some file systems a.png and A.png are the same file.
        while name.casefold() in taken:
            count += 1
            name = f"{image.stem}-{count}"
        taken.add(name.casefold())
        names.append(name)
    return names


def write_results(
    folder: Path, name: str, image: UInt8, results: Sequence[Result], draw: bool = True
) -> Record:
    """Write one image's results.

    Args:
        folder: receives `masks/CLASS/NAME.png` (0 and 255), for several classes `labels/NAME.png`
            (a palette image: 0, and 1 + the class's index), and `overlays/NAME.jpg`.
        name: file name without suffix.
        image: uint8 [H, W, 3].
        results: the image's results, one or more.
        draw: write the overlay.

    Returns:
        The written files and the results, for JSON; paths are relative to `folder`.
    """
    labels = label_map(results)
    record: Record = {"width": image.shape[1], "height": image.shape[0], "classes": []}
    for result in results:
        mask = Path("masks", result.name, f"{name}.png")
        _save(Image.fromarray(result.mask * np.uint8(255)), folder / mask)
        record["classes"].append(
            {
                "name": result.name,
                "score": round(result.score, 6),
                "area": round(float(result.mask.mean()), 6),
                "box": _box(result.mask),
                "mask": mask.as_posix(),
            }
        )
    if len(results) > 1:
        record["labels"] = f"labels/{name}.png"
        _save(_palette_image(labels), folder / record["labels"])
    if draw:
        record["overlay"] = f"overlays/{name}.jpg"
        _save(Image.fromarray(draw_labels(image, labels)), folder / record["overlay"], quality=92)
    return record


def draw_labels(image: UInt8, labels: UInt8) -> UInt8:
    """Return the image with each class of a label map drawn over it in its own colour."""
    drawn = image
    for value in np.unique(labels[labels != 0]):
        drawn = overlay(drawn, (labels == value).astype(np.uint8), class_colour(int(value) - 1))
    return drawn


def _pictures(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _save(image: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def _palette_image(labels: UInt8) -> Image.Image:
    image = Image.fromarray(labels).convert("P")
    colours = [channel for index in range(255) for channel in class_colour(index)]
    image.putpalette([0, 0, 0, *colours])
    return image


def _box(mask: UInt8) -> list[int] | None:
    """Return [left, top, right, bottom] of the foreground, the last two exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
