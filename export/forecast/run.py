"""`forecast`: what `uino-deploy precision` does, from a bundle or checkpoint to JSON and page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from uino_deploy.bundle import Bundle
from uino_deploy.dependencies import require
from uino_deploy.errors import InputError
from uino_deploy.export.forecast.results import Forecast
from uino_deploy.export.forecast.rounding import KINDS, Kind
from uino_deploy.export.forecast.samples import COUNT, folder_samples, thing_samples
from uino_deploy.files import atomic_directory, refuse_existing
from uino_deploy.workspace import work_folder

RECORD = "forecast.json"
PAGE = "forecast.html"


def forecast(
    target: Path,
    *,
    images: Path | None = None,
    shots: Sequence[tuple[Path, Path]] = (),
    kinds: Sequence[Kind] = (),
    most: int = COUNT,
    budget: float = 0.99,
    minutes: float = 30.0,
    threads: int | None = None,
    output: Path | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _note: None,
) -> Forecast:
    """Forecast what float16, bfloat16, TF32, int8 and fp8 do to a model, block by block and node.

    Args:
        target: a float32 bundle, or a uino-deploy checkpoint, which is exported first.
        images: a folder; scenes of one drawn thing if None.
        shots: images and masks of the class that is asked for in `images`; if empty, each image is
            segmented by an ellipse in the one before it.
        kinds: the types; all if empty.
        most: the most images.
        budget: the least IoU of a mask with float32's.
        minutes: when they are over, what is left is skipped and listed.
        threads: of ONNX Runtime; one for each core if None.
        output: a folder for the record and the page; none if None.
        force: replace the folder.
        progress: called with a note before each step.

    Raises:
        InputError: the bundle is not float32, or the images do not suffice.
        BundleError: the bundle is damaged.
        CheckpointError: the checkpoint is unreadable.
        DependencyError: torch, onnx or onnxruntime is not installed, or with `output` Jinja2 or
            matplotlib.
        OutputExists: the folder exists and `force` is not given.
    """
    require("export", "onnx", "onnxruntime")
    if shots and images is None:
        raise InputError("--shot needs --images", "name the folder of images to segment")
    if output is not None:
        require("pages", "jinja2", "matplotlib")
        refuse_existing(output, force, RECORD)
    from uino_deploy.export.forecast.forecast import forecast_precision

    samples = thing_samples(most) if images is None else folder_samples(images, shots, most)
    with ExitStack() as stack:
        bundle = _opened(target, stack, progress)
        found = forecast_precision(
            bundle,
            samples,
            kinds=kinds or KINDS,
            budget=budget,
            minutes=minutes,
            name=target.name,
            threads=threads,
            progress=progress,
        )
    if output is not None:
        _write(found, output, force)
    return found


def _opened(target: Path, stack: ExitStack, progress: Callable[[str], None]) -> Bundle:
    if target.is_dir():
        return Bundle.open(target)
    from uino_deploy.export.checkpoints import export_checkpoint

    folder = stack.enter_context(work_folder(None, "uino-forecast"))
    return export_checkpoint(folder / "exported.uino", checkpoint=target, progress=progress)


def _write(found: Forecast, output: Path, force: bool) -> None:
    from uino_deploy.export.forecast.page import write_page

    with atomic_directory(output, force, marker=RECORD) as folder:
        (folder / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
        (folder / PAGE).write_text(write_page(found), encoding="utf-8")
