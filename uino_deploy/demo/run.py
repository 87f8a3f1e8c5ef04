"""Run the demo's phases in order and leave one finished folder."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from PIL import Image

from uino_deploy.data import Pool, load_pool
from uino_deploy.demo.page import demo_page
from uino_deploy.demo.results import Accuracy, Results
from uino_deploy.demo.segmentation import (
    Outcome,
    baseline_miou,
    reference_masks,
    score,
    segment,
)
from uino_deploy.evaluation.episodes import EVALUATION_SEED
from uino_deploy.files import atomic_directory, sha256
from uino_deploy.images import UInt8
from uino_deploy.progress import Progress
from uino_deploy.runtime import Predictor
from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend

if TYPE_CHECKING:
    from uino_deploy.model import UinoFSS

Log = Callable[[str], None]

CHECKPOINT = Path(__file__).parent.parent / "assets" / "tiny.safetensors"
EPISODES = 240
DIGIT_EPISODES = 200
REPORT = "report.json"


def run_demo(
    output: Path,
    log: Log,
    progress: Progress,
    force: bool = False,
    checkpoint: Path = CHECKPOINT,
    episodes: int = EPISODES,
    digit_episodes: int = DIGIT_EPISODES,
) -> Results:
    """Export, verify, enroll, segment, score, and write the report.

    The folder holds `demo.uino`; `shots` and the `supports` enrolled from them, one for each
    class; `queries`, the bundle's `masks` of them and their `truths`; `report.html` and
    `report.json`. It appears whole or not at all, also if the demo fails.

    Args:
        output: the folder.
        log: receives a line for each phase.
        progress: opens a progress display from a description and a number of steps.
        force: replace an earlier demo.
        checkpoint: a uino-deploy checkpoint, such as the bundled one.
        episodes: number of held-out episodes to segment.
        digit_episodes: number of episodes of handwritten digits.

    Raises:
        OutputExists: the folder exists and `force` is not given, or it does not hold a demo.
        CheckpointError: the checkpoint is unreadable.
        BuildError: the export failed.
    """
    clock = _Clock(log)
    with atomic_directory(output, force, marker=REPORT) as folder:
        model, verified = _make_bundle(folder / "demo.uino", checkpoint, clock)
        predictor = Predictor.load(folder / "demo.uino", require_signature=False)
        held_out, digits = load_pool("held-out"), load_pool("digits")
        with clock.phase("held-out classes"), progress("held-out queries", episodes) as step:
            outcomes = segment(predictor, held_out, episodes, step)
        with clock.phase("digits"), progress("digit queries", digit_episodes) as step:
            digit_outcomes = segment(predictor, digits, digit_episodes, step)
        with clock.phase("PyTorch"), progress("PyTorch", episodes) as step:
            masks = reference_masks(model, outcomes, step)
        with clock.phase("report"):
            results = Results(
                bundle=_accuracy(held_out, outcomes, [each.result.mask for each in outcomes]),
                reference=_accuracy(held_out, outcomes, masks),
                baseline=baseline_miou(held_out, outcomes),
                digits=_accuracy(digits, digit_outcomes, [e.result.mask for e in digit_outcomes]),
                seconds_per_query=median(each.seconds for each in outcomes),
                seconds=clock.seconds,
                verify=verified,
                provenance=_provenance(predictor, checkpoint),
                episodes={
                    "held_out": _counts(outcomes),
                    "digits": _counts(digit_outcomes),
                },
            )
            _write_pictures(folder, outcomes)
        html = demo_page(results, outcomes, digit_outcomes)
        (folder / "report.html").write_text(html, encoding="utf-8")
        text = json.dumps(results.document(), indent=2) + "\n"
        (folder / REPORT).write_text(text, encoding="utf-8")
    return results


class _Clock:
    """A timer that logs each phase and keeps its duration."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time one phase."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun
        self._log(f"{name}: {self.seconds[name]:.1f} s")


def _make_bundle(path: Path, checkpoint: Path, clock: _Clock) -> tuple[UinoFSS, dict[str, Any]]:
    """Export and verify the checkpoint; return the model and the verification's document."""
    with clock.phase("load"):
        from uino_deploy.export import export_bundle, verify_bundle
        from uino_deploy.model.assembly import assemble_from_checkpoint

        made = assemble_from_checkpoint(checkpoint)
    with clock.phase("export"):
        bundle = export_bundle(
            made.model, path, sources=made.sources, untrained=made.untrained, seed=made.seed
        )
    with clock.phase("verify"):
        verified = verify_bundle(bundle, OnnxRuntimeBackend(), made.model)
    return made.model, msgspec.to_builtins(verified)


def _accuracy(pool: Pool, outcomes: Sequence[Outcome], masks: Sequence[UInt8]) -> Accuracy:
    total = score(pool, outcomes, masks)
    return Accuracy(total.miou, total.fb_iou)


def _counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return {"queries": len(outcomes), "classes": len({each.name for each in outcomes})}


def _provenance(predictor: Predictor, checkpoint: Path) -> dict[str, Any]:
    from uino_deploy.model.checkpoint import read_checkpoint_metadata

    manifest = predictor.bundle.manifest
    return {
        "checkpoint": {
            "name": checkpoint.name,
            "sha256": sha256(checkpoint),
            "bytes": checkpoint.stat().st_size,
            **read_checkpoint_metadata(checkpoint).provenance,
        },
        "bundle": {
            "fingerprint": manifest.fingerprint,
            "bytes": sum(entry.size for entry in manifest.files.values()),
        },
        "backend": predictor.backend.describe(),
        "versions": manifest.provenance.versions,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "seed": EVALUATION_SEED,
    }


def _write_pictures(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write every class's first shot and support, and every query, mask and truth."""
    for name in ("shots", "supports", "queries", "masks", "truths"):
        (folder / name).mkdir()
    enrolled: set[str] = set()
    for outcome in outcomes:
        if outcome.name not in enrolled:
            enrolled.add(outcome.name)
            shot = outcome.episode.support[0]
            _save(folder / "shots" / f"{outcome.name}.png", shot.image)
            _save(folder / "shots" / f"{outcome.name}_mask.png", 255 * shot.mask)
            outcome.support.save(folder / "supports" / f"{outcome.name}.safetensors")
        file = f"{outcome.index:03d}_{outcome.name}.png"
        _save(folder / "queries" / file, outcome.episode.query.image)
        _save(folder / "masks" / file, 255 * outcome.result.mask)
        _save(folder / "truths" / file, 255 * outcome.episode.query.mask)


def _save(path: Path, pixels: UInt8) -> None:
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
