"""The paper's ablations on drawn characters: each row trained alike, judged on the same episodes.

Stand-ins, since nothing here is pre-trained on photographs: the demo model's encoder for DINOv2,
its adapter for one distilled from SAM, its decoder for SAM's. Only the prompt generator of each row
is new, and the adapter where the row asks for one that was not distilled. The decoder has learnt to
follow the demo model's own prompts, which may favour the rows that are most like it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uino_deploy.config import Hypercorrelation, UinoConfig
from uino_deploy.evaluation.runs import Run, compare, detail, read_runs, run_episodes
from uino_deploy.files import atomic_file, sha256

if TYPE_CHECKING:
    from uino_deploy.model.segmenter import UinoFSS
    from uino_deploy.training.engine import Position

RESULTS = "results.json"
EPISODE_SEED = 2


@dataclass(frozen=True)
class Row:
    """One row of the paper's ablation tables.

    Attributes:
        name: of the row.
        against: the row that it is compared with; empty for the first.
        paper: the paper's mIoU, COCO-20i 1-shot.
        semantic: SVP is there.
        hypercorrelation: MHCM, CP4D or none.
        contrastive: CE is there.
        learning: the parts that learn.
        fresh_adapter: the adapter was not distilled, and learns with the rest.
    """

    name: str
    against: str
    paper: float
    semantic: bool = True
    hypercorrelation: Hypercorrelation = "none"
    contrastive: bool = False
    learning: tuple[str, ...] = ("prompt_generator", "decoder")
    fresh_adapter: bool = False

    def config(self, base: UinoConfig) -> UinoConfig:
        """Return the row's model, of the base's sizes."""
        prompt = replace(
            base.prompt,
            semantic=self.semantic,
            hypercorrelation=self.hypercorrelation,
            contrastive=self.contrastive,
        )
        variant = {"none": "comp", "mhcm": "full", "cp4d": "cp4d"}[self.hypercorrelation]
        return UinoConfig.from_dict({**replace(base, prompt=prompt).to_dict(), "variant": variant})


ROWS = {
    "ba-pcs": Row("BA + PCS", "", 58.2, semantic=False),
    "svp": Row("+ SVP (compact)", "ba-pcs", 59.6),
    "mhcm": Row("+ MHCM", "svp", 62.3, hypercorrelation="mhcm"),
    "ce": Row("+ CE (full)", "mhcm", 64.5, hypercorrelation="mhcm", contrastive=True),
    "cp4d": Row("CP4D for MHCM", "ce", 64.0, hypercorrelation="cp4d", contrastive=True),
    "undistilled": Row(
        "compact, not distilled",
        "svp",
        52.8,
        learning=("prompt_generator", "decoder", "adapter"),
        fresh_adapter=True,
    ),
    "frozen": Row("compact, decoder frozen", "svp", 57.2, learning=("prompt_generator",)),
}
"""By the names of their folders, in the order in which they are run."""


@dataclass(frozen=True)
class Budget:
    """What each row is given.

    Attributes:
        steps: of its training.
        batch: episodes of a step.
        learning_rate: the highest.
        episodes: held-out ones that judge it.
    """

    steps: int = 1500
    batch: int = 8
    learning_rate: float = 1e-3
    episodes: int = 400


def new_model(base: UinoFSS, row: Row, seed: int) -> UinoFSS:
    """Return a row's model before its training: new prompts, the base's other parts.

    Args:
        base: the stand-in for everything pre-trained.
        row: what is built.
        seed: of the new weights.
    """
    import torch

    from uino_deploy.model.segmenter import UinoFSS

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UinoFSS(row.config(base.config))
    kept = ["encoder", "decoder"] + ([] if row.fresh_adapter else ["adapter"])
    for part in kept:
        model.get_submodule(part).load_state_dict(base.get_submodule(part).state_dict())
    return model.eval()


def run_row(
    key: str,
    seed: int,
    checkpoint: Path,
    folder: Path,
    budget: Budget,
    observe: Callable[[Position], None] = lambda position: None,
    done: Callable[[], None] = lambda: None,
) -> Run:
    """Train and judge a row, or go on where an earlier call stopped; a finished row is read.

    Args:
        key: of `ROWS`.
        seed: of new weights and of the training's episodes.
        checkpoint: the stand-in for everything pre-trained.
        folder: of all rows.
        budget: of each row.
        observe: called after every step.
        done: called after every episode of the evaluation.

    Raises:
        InputError: the folder holds this row with another budget or checkpoint.
    """
    import torch

    from uino_deploy.data.episode_list import draw_list
    from uino_deploy.data.open import open_dataset
    from uino_deploy.evaluation.segmenters import model_segmenter
    from uino_deploy.model.checkpoint import load_checkpoint
    from uino_deploy.training.engine import Engine, Schedule, prepare_folder
    from uino_deploy.training.episodic import EpisodicTraining
    from uino_deploy.training.processes import Processes

    own = folder / f"{key}-{seed}"
    alone = Processes(0, 1, torch.device("cpu"))
    settings: dict[str, Any] = {
        "row": key, "seed": seed, "checkpoint": sha256(checkpoint), **vars(budget),
    }  # fmt: skip
    prepare_folder(own, settings, resume=True, force=False, processes=alone)
    if (own / RESULTS).exists():
        return read_runs(own / RESULTS)[None]
    row = ROWS[key]
    model = new_model(load_checkpoint(checkpoint), row, seed)
    # A character's mirror image is another character.
    task = EpisodicTraining(
        model,
        row.learning,
        open_dataset("demo", split="train"),
        1,
        budget.batch,
        seed,
        alone,
        mirror=False,
    )
    schedule = Schedule((budget.steps,), budget.learning_rate)
    Engine(task, schedule, own, alone, save_every=100).run(observe)
    held_out = open_dataset("demo")
    episodes = draw_list(held_out, budget.episodes, 1, EPISODE_SEED)
    run = run_episodes(row.name, model_segmenter(model.eval()), held_out, episodes, done)
    _write(run, own / RESULTS)
    return run


def table(runs: dict[str, dict[int, Run]]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows: ours, the difference to the row compared with, and the paper's.

    Args:
        runs: by row and seed. Over several seeds the figure is their mean, and the interval that of
            the first seed: what episodes alone leave open, not what another seed would change.
    """
    rows = []
    for key, seeds in runs.items():
        row = ROWS[key]
        mean = sum(run.score.miou for run in seeds.values()) / len(seeds)
        first = next(iter(seeds))
        difference = paper = "-"
        if row.against in runs and first in runs[row.against]:
            compared = compare(seeds[first], runs[row.against][first])
            low, high = compared["difference_interval"]
            difference = f"{compared['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
            paper = f"{row.paper - ROWS[row.against].paper:+.1f}"
        versus = ROWS[row.against].name if row.against else "-"
        rows.append([row.name, f"{mean:.1f}", versus, difference, paper, f"{row.paper:.1f}"])
    return ["row", "mIoU", "against", "difference", "paper's", "paper"], rows


def _write(run: Run, path: Path) -> None:
    import json

    with atomic_file(path, force=True) as temporary:
        kept = {**run.document(), **detail({None: run})}
        temporary.write_text(json.dumps(kept, ensure_ascii=False) + "\n", encoding="utf-8")
