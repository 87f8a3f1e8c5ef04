"""The results file of an evaluation: its report, and its runs for later comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from uino_deploy.documents import DocumentError, decode_json
from uino_deploy.errors import InputError
from uino_deploy.evaluation.episodes import Run
from uino_deploy.files import atomic_file
from uino_deploy.inputs import read_regular

SCHEMA = "1.0"
_MOST_BYTES = 1 << 30  # of a results file
_MOST_PIXELS = 1 << 40  # of one image


class _Detail(msgspec.Struct):
    """A run in a results file."""

    model: str
    fold: int | None
    classes: list[str]
    labels: list[int]
    counts: list[tuple[int, int, int, int]]
    episodes_sha256: str
    seconds: float
    images_sha256: str = ""
    absent: list[int] = []
    presence: list[tuple[float, float]] = []


class _Results(msgspec.Struct):
    """The part of a results file that is read; the rest is for people."""

    schema_version: str
    runs: list[_Detail]
    baseline_runs: list[_Detail] = []


Runs = Mapping[int | None, Run]
"""Runs by fold; None if the data set has no folds."""


def write_results(
    path: Path,
    document: Mapping[str, Any],
    runs: Runs,
    force: bool = False,
    baselines: Mapping[str, Runs] | None = None,
) -> None:
    """Write a results file, whole or not at all.

    Args:
        path: the file.
        document: the report, as plain values.
        runs: the model's.
        force: replace an existing file.
        baselines: the runs of each baseline, by its name.

    Raises:
        OutputExists: the file exists and `force` is not given.
    """
    others = [_details(each) for each in (baselines or {}).values()]
    whole = {
        **document,
        "schema_version": SCHEMA,
        "runs": msgspec.to_builtins(_details(runs)),
        "baseline_runs": msgspec.to_builtins([detail for each in others for detail in each]),
    }
    with atomic_file(path, force) as temporary:
        temporary.write_text(json.dumps(whole, ensure_ascii=False) + "\n", encoding="utf-8")


def _details(runs: Runs) -> list[_Detail]:
    return [
        _Detail(
            run.name,
            fold,
            list(run.classes),
            list(run.labels),
            run.counts.tolist(),
            run.episodes_sha256,
            run.seconds,
            run.images_sha256,
            list(run.absent),
            list(run.presence),
        )
        for fold, run in runs.items()
    ]


def read_runs(path: Path) -> dict[int | None, Run]:
    """Read the runs in a results file, by fold.

    Raises:
        InputError: the file cannot be read, or `uino-deploy evaluate -o` did not write it.
    """
    read = _read(path)
    if len({each.fold for each in read.runs}) != len(read.runs):
        raise InputError(f"{path} holds two runs of a fold", "run the evaluation again")
    return {each.fold: _checked(each, path) for each in read.runs}


def read_baselines(path: Path) -> dict[str, dict[int | None, Run]]:
    """Read the baselines' runs in a results file, by name and fold; none if it is an older one.

    Raises:
        InputError: as `read_runs`.
    """
    found: dict[str, dict[int | None, Run]] = {}
    for each in _read(path).baseline_runs:
        found.setdefault(each.model, {})[each.fold] = _checked(each, path)
    return found


def _read(path: Path) -> _Results:
    try:
        read = decode_json(read_regular(path, "results", _MOST_BYTES), _Results)
    except OSError as error:
        raise InputError(f"results {path} cannot be read: {error.strerror}") from error
    except DocumentError as error:
        raise InputError(f"{path} is not a results file: {error}") from error
    if read.schema_version.partition(".")[0] != SCHEMA.partition(".")[0]:
        raise InputError(f"{path} has schema {read.schema_version}; this version reads {SCHEMA}")
    return read


def _checked(read: _Detail, path: Path) -> Run:
    inside = all(0 <= label < len(read.classes) for label in read.labels)
    possible = all(map(_possible, read.counts))
    inside &= all(0 <= number < len(read.labels) for number in read.absent)
    inside &= len(read.presence) in (0, len(read.labels))
    if not inside or not possible or not 0 < len(read.labels) == len(read.counts):
        raise InputError(f"{path} is damaged", "run the evaluation again")
    counts = np.asarray(read.counts, dtype=np.int64).reshape(-1, 4)
    return Run(
        read.model,
        tuple(read.classes),
        tuple(read.labels),
        counts,
        read.episodes_sha256,
        read.seconds,
        read.images_sha256,
        tuple(read.absent),
        tuple(read.presence),
    )


def _possible(counts: tuple[int, int, int, int]) -> bool:
    """Return whether an image can have these counts, see `metrics.Counts`."""
    both, either, neither, not_both = counts
    return (
        0 <= both <= either
        and 0 <= neither <= not_both
        and either + neither == both + not_both <= _MOST_PIXELS
    )
