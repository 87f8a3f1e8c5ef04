"""The results file of an evaluation: its report, and its runs for later comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from uino_deploy.errors import InputError
from uino_deploy.evaluation.episodes import Run
from uino_deploy.files import atomic_file

SCHEMA = "1.0"


class _Detail(msgspec.Struct):
    """A run in a results file."""

    model: str
    fold: int | None
    classes: list[str]
    labels: list[int]
    counts: list[tuple[int, int, int, int]]
    episodes_sha256: str
    seconds: float


class _Results(msgspec.Struct):
    """The part of a results file that `read_runs` needs; the rest is for people."""

    schema_version: str
    runs: list[_Detail]


def write_results(
    path: Path, document: Mapping[str, Any], runs: Mapping[int | None, Run], force: bool = False
) -> None:
    """Write a results file, whole or not at all.

    Args:
        path: the file.
        document: the report, as plain values.
        runs: by fold; None if the data set has no folds.
        force: replace an existing file.

    Raises:
        OutputExists: the file exists and `force` is not given.
    """
    kept = [
        _Detail(
            run.name,
            fold,
            list(run.classes),
            list(run.labels),
            run.counts.tolist(),
            run.episodes_sha256,
            run.seconds,
        )
        for fold, run in runs.items()
    ]
    whole = {**document, "schema_version": SCHEMA, "runs": msgspec.to_builtins(kept)}
    with atomic_file(path, force) as temporary:
        temporary.write_text(json.dumps(whole, ensure_ascii=False) + "\n", encoding="utf-8")


def read_runs(path: Path) -> dict[int | None, Run]:
    """Read the runs in a results file, by fold.

    Raises:
        InputError: the file cannot be read, or `uino-deploy evaluate -o` did not write it.
    """
    try:
        read = msgspec.json.decode(path.read_bytes(), type=_Results)
    except OSError as error:
        raise InputError(f"results {path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise InputError(f"{path} is not a results file: {error}") from error
    if read.schema_version.partition(".")[0] != SCHEMA.partition(".")[0]:
        raise InputError(f"{path} has schema {read.schema_version}; this version reads {SCHEMA}")
    return {each.fold: _checked(each, path) for each in read.runs}


def _checked(read: _Detail, path: Path) -> Run:
    counts = np.asarray(read.counts, dtype=np.int64).reshape(-1, 4)
    inside = all(0 <= label < len(read.classes) for label in read.labels)
    if not inside or len(counts) != len(read.labels):
        raise InputError(f"{path} is damaged", "run the evaluation again")
    return Run(
        read.model,
        tuple(read.classes),
        tuple(read.labels),
        counts,
        read.episodes_sha256,
        read.seconds,
    )
