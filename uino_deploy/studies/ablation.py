"""The paper's ablations on drawn characters: rows trained and evaluated alike.

No part is pre-trained on photographs. The demo model's parts stand in: its encoder for DINOv2,
its adapter for one distilled from SAM, its decoder for SAM's. Only the prompt generator of each row
is new, and the adapter if the row needs one that was not distilled. The decoder has learnt to
follow the demo model's own prompts, which may favour the rows that are most like it. Rows with
their own encoder size first train that encoder by the first stage of the demo's recipe, and then
a new adapter with the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uino_deploy import markdown
from uino_deploy.config import UinoConfig
from uino_deploy.dependencies import library_versions, require
from uino_deploy.errors import InputError
from uino_deploy.evaluation.episodes import EVALUATION_SEED, Run, run_episodes
from uino_deploy.evaluation.report import compare, run_document
from uino_deploy.evaluation.results import read_runs, write_results
from uino_deploy.files import atomic_file, sha256
from uino_deploy.progress import Progress, silent
from uino_deploy.studies.rows import ROWS, new_model

if TYPE_CHECKING:
    from torch import Tensor

    from uino_deploy.training.reporting import Observer

RESULTS = "results.json"
ENCODER = "encoder.safetensors"

Runs = dict[str, dict[int, Run]]
"""By the row's key and the seed."""


@dataclass(frozen=True)
class Budget:
    """The training and the evaluation of each row.

    Attributes:
        steps: training steps.
        batch: episodes per step.
        learning_rate: the peak learning rate.
        episodes: held-out episodes to evaluate the row on.
        encoder_steps: training steps for a row that trains its own encoder.
    """

    steps: int = 1500
    batch: int = 8
    learning_rate: float = 1e-3
    episodes: int = 400
    encoder_steps: int = 3000


@dataclass(frozen=True)
class Ablation:
    """The results of `ablate`.

    Attributes:
        columns: the column headings of the table.
        rows: the table: our mIoU, its difference from the compared row's, and the paper's.
        document: the same and every run's figures, as plain values.
    """

    columns: list[str]
    rows: list[list[str]]
    document: dict[str, Any]


def ablate(
    checkpoint: Path,
    folder: Path,
    *,
    rows: Sequence[str] = (),
    seeds: int = 1,
    budget: Budget | None = None,
    log: Callable[[str], None] = lambda line: None,
    observe: Observer = lambda _progress: None,
    progress: Progress = silent,
) -> Ablation:
    """Train and evaluate rows of the paper's ablation tables on drawn characters.

    A finished row in the folder is read; an interrupted one continues where it stopped.

    Args:
        checkpoint: a trained demo model: the stand-in for everything pre-trained.
        folder: receives a folder for each row and seed.
        rows: keys of `ROWS`; all if empty.
        seeds: training runs per row; the first run of every row comes first.
        budget: the training and the evaluation of each row; that of the paper's page if None.
        log: receives a line for each row.
        observe: called after every training step.
        progress: reports the progress of a row's evaluation.

    Raises:
        InputError: a row does not exist, the checkpoint is unreadable, or the folder holds a row
            with another budget or checkpoint.
        DependencyError: PyTorch or matplotlib is not installed.
    """
    require("train", "torch", "matplotlib")
    unknown = sorted(set(rows) - set(ROWS))
    if unknown:
        raise InputError(f"no row {', '.join(unknown)}", f"choose from {', '.join(ROWS)}")
    budget = budget or Budget()
    runs: Runs = {key: {} for key in ROWS if not rows or key in rows}
    for seed in range(seeds):
        for key, by_seed in runs.items():
            log(f"row {key}, seed {seed}")
            with progress("judging", budget.episodes) as done:
                by_seed[seed] = run_row(key, seed, checkpoint, folder, budget, observe, done)
    columns, lines = table(runs)
    document = {
        "checkpoint_sha256": sha256(checkpoint),
        "versions": library_versions(),
        "budget": vars(budget),
        "seeds": seeds,
        "rows": {
            key: {str(seed): run_document(run) for seed, run in by_seed.items()}
            for key, by_seed in runs.items()
        },
        "table": [dict(zip(columns, line, strict=True)) for line in lines],
    }
    return Ablation(columns, lines, document)


def run_row(
    key: str,
    seed: int,
    checkpoint: Path,
    folder: Path,
    budget: Budget,
    observe: Observer = lambda _progress: None,
    done: Callable[[], None] = lambda: None,
) -> Run:
    """Train and evaluate a row, or continue where an earlier call stopped; a finished row is read.

    Args:
        key: the row's key in `ROWS`.
        seed: the seed of new weights and of the training's episodes.
        checkpoint: the stand-in for everything pre-trained.
        folder: the folder of all rows.
        budget: the training and the evaluation of the row.
        observe: called after every training step.
        done: called after every episode of the evaluation.

    Raises:
        InputError: the folder holds this row with another budget or checkpoint.
    """
    from uino_deploy.data.episode_list import draw_list
    from uino_deploy.data.open import open_dataset
    from uino_deploy.evaluation.segmenters import model_segmenter
    from uino_deploy.model.checkpoint import load_checkpoint
    from uino_deploy.training.episodic import EpisodicTraining
    from uino_deploy.training.loop import TrainingLoop
    from uino_deploy.training.processes import ALONE
    from uino_deploy.training.run_folder import prepared_folder
    from uino_deploy.training.schedule import Schedule

    own = folder / f"{key}-{seed}"
    settings: dict[str, Any] = {
        "row": key, "seed": seed, "checkpoint": sha256(checkpoint), **vars(budget),
    }  # fmt: skip
    with prepared_folder(own, settings, resume=True, force=False, processes=ALONE):
        if (own / RESULTS).exists():
            return read_runs(own / RESULTS)[None]
        row = ROWS[key]
        model = new_model(load_checkpoint(checkpoint), row, seed)
        if row.encoder_width is not None:
            state = _trained_encoder(
                own / ENCODER, model.config, seed, budget.encoder_steps, observe
            )
            model.encoder.load_state_dict(state)
        # A character's mirror image is a different character.
        task = EpisodicTraining(
            model,
            row.learning,
            open_dataset("demo", split="train"),
            1,
            budget.batch,
            seed,
            ALONE,
            mirror=False,
        )
        schedule = Schedule(budget.steps, budget.learning_rate, warmup=100)
        TrainingLoop(task, [schedule], own, ALONE, save_every=100).run(observe)
        held_out = open_dataset("demo")
        episodes = draw_list(held_out, budget.episodes, 1, EVALUATION_SEED)
        run = run_episodes(row.name, model_segmenter(model.eval()), held_out, episodes, done)
        write_results(own / RESULTS, run_document(run), {None: run}, force=True)
        return run


def _trained_encoder(
    path: Path, config: UinoConfig, seed: int, steps: int, observe: Observer
) -> dict[str, Tensor]:
    """Return an encoder's weights after the demo recipe's first stage, from a file if it exists."""
    import safetensors.torch

    from uino_deploy.training.from_scratch import train_from_scratch
    from uino_deploy.training.recipe import RECIPES

    if path.exists():
        return safetensors.torch.load_file(path)
    recipe = RECIPES["demo"]
    recipe = replace(recipe, stages=(replace(recipe.stages[0], steps=steps),))
    model = train_from_scratch(recipe, seed, path.with_suffix(""), config, observe)
    state = model.encoder.state_dict()
    with atomic_file(path, force=True) as temporary:
        safetensors.torch.save_file(state, temporary)
    return state


def table(runs: Runs) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows: ours, the difference from the compared row, and the paper's.

    The mIoU is the mean over the seeds. The first seed's difference comes with its interval, which
    covers the choice of episodes but not of the seed; the other seeds' differences follow it.
    """
    rows = []
    for key, seeds in runs.items():
        row = ROWS[key]
        mean = sum(run.score.miou for run in seeds.values()) / len(seeds)
        differences, paper = "-", "-"
        others = runs.get(row.against)
        if others is not None:
            compared = [compare(run, others[seed]) for seed, run in seeds.items()]
            low, high = compared[0]["difference_interval"]
            told = [f"{each['difference']:+.1f}" for each in compared]
            differences = ", ".join([f"{told[0]} [{low:+.1f}, {high:+.1f}]", *told[1:]])
            paper = f"{row.paper - ROWS[row.against].paper:+.1f}"
        versus = ROWS[row.against].name if row.against else "-"
        rows.append([row.name, f"{mean:.1f}", versus, differences, paper, f"{row.paper:.1f}"])
    return ["row", "mIoU", "against", "difference", "paper's", "paper"], rows


def renew(page: str, document: dict[str, Any]) -> str:
    """Return a Markdown text with an ablation's table between its two marks.

    Args:
        page: the text.
        document: the output of `uino-deploy ablate --json`.

    Raises:
        InputError: the text has no marks.
    """
    header, *_ = rows = document["table"]
    return markdown.renew(
        page, "ablation", markdown.table(list(header), [list(row.values()) for row in rows])
    )


def main() -> None:
    """Update the table in a Markdown file: `ablation.py DOCUMENT PAGE`."""
    import sys

    source, page = map(Path, sys.argv[1:])
    document = json.loads(source.read_text("utf-8"))
    markdown.rewrite(page, lambda text: renew(text, document))


if __name__ == "__main__":
    main()
