"""The error of each piece: fed with float32 PyTorch's tensors and compared with its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

from uino_deploy.benchmarks.runners.bundle import BundleRunner
from uino_deploy.benchmarks.work import Shot
from uino_deploy.bundle.reference import inputs_of, load_example, outputs_of
from uino_deploy.images import load_image
from uino_deploy.pipeline import WHOLE
from uino_deploy.tolerances import piece_tolerance, relative_l2

if TYPE_CHECKING:
    from uino_deploy.model.segmenter import UinoFSS


def write_example(model: UinoFSS, query: Path, shots: Sequence[Shot], path: Path) -> None:
    """Write the tensors that pass between the pieces on one query, named as in `reference`."""
    from safetensors.torch import save_file

    from uino_deploy.export.examples import example_of

    save_file(example_of(model, load_image(query), shots), path)


def compare_pieces(runner: BundleRunner, examples: Sequence[Path]) -> list[dict[str, Any]]:
    """Run every piece on the examples; without any, on the one stored in the bundle.

    Returns:
        For each output of each piece, the fields of a `record.PieceError`, worst of all examples.
    """
    bundle = runner.predictor.bundle
    known = [load_file(path) for path in examples] or [load_example(bundle)]
    names = [name for name in bundle.manifest.pieces if name != WHOLE]
    errors: dict[tuple[str, str], dict[str, Any]] = {}
    for name in names:
        session = runner.backend.load(bundle, name)
        allowed = piece_tolerance(session.piece.precision).relative_l2
        for example in known:
            answers = session.run(inputs_of(session.piece, example))
            wanted = outputs_of(session.piece, example)
            for output, got in answers.items():
                error = {
                    "relative_l2": relative_l2(got, wanted[output]),
                    "max_abs": _max_abs(got, wanted[output]),
                }
                worst = errors.setdefault(
                    (name, output),
                    {"piece": name, "output": output, "allowed": allowed, **error},
                )
                worst |= {key: max(worst[key], value) for key, value in error.items()}
    return list(errors.values())


def _max_abs(got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    return float(np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0))
