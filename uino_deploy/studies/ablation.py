"""The paper's ablations on drawn characters: each row trained alike, judged on the same episodes.

Stand-ins, since nothing here is pre-trained on photographs: the demo model's encoder for DINOv2,
its adapter for one distilled from SAM, its decoder for SAM's. Only the prompt generator of each row
is new, and the adapter where a row asks for one that was not distilled. The decoder has learnt to
follow the demo model's own prompts, which may favour the rows that are most like it. Rows with an
encoder of their own size train it first, as the demo's recipe begins, and a new adapter besides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uino_deploy import markdown
from uino_deploy.config import Hypercorrelation, UinoConfig
from uino_deploy.evaluation.runs import Run, compare, detail, read_runs, run_episodes
from uino_deploy.files import atomic_file, sha256

if TYPE_CHECKING:
    from torch import Tensor

    from uino_deploy.model.segmenter import UinoFSS
    from uino_deploy.training.progress import Observer

RESULTS = "results.json"
ENCODER = "encoder.safetensors"
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
        encoder_width: of an encoder that is trained for this row; None for the base's.
    """

    name: str
    against: str
    paper: float
    semantic: bool = True
    hypercorrelation: Hypercorrelation = "none"
    contrastive: bool = False
    learning: tuple[str, ...] = ("prompt_generator", "decoder")
    fresh_adapter: bool = False
    encoder_width: int | None = None

    def config(self, base: UinoConfig) -> UinoConfig:
        """Return the row's model, of the base's sizes."""
        prompt = replace(
            base.prompt,
            semantic=self.semantic,
            hypercorrelation=self.hypercorrelation,
            contrastive=self.contrastive,
        )
        encoder = base.encoder
        if self.encoder_width is not None:
            heads = self.encoder_width * encoder.heads // encoder.width
            encoder = replace(encoder, width=self.encoder_width, heads=heads)
        variant = {"none": "comp", "mhcm": "full", "cp4d": "cp4d"}[self.hypercorrelation]
        sized = replace(base, encoder=encoder, prompt=prompt)
        return UinoConfig.from_dict({**sized.to_dict(), "variant": variant})


def _with_encoder(width: int, against: str, paper: float) -> Row:
    """Return the compact model on an encoder of a width; the paper's are ViT-S, ViT-B and ViT-L."""
    learning = ("prompt_generator", "decoder", "adapter")
    name = f"compact, encoder {width} wide"
    return Row(name, against, paper, learning=learning, fresh_adapter=True, encoder_width=width)


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
    "encoder-64": _with_encoder(64, "", 54.3),
    "encoder-128": _with_encoder(128, "encoder-64", 59.6),
    "encoder-192": _with_encoder(192, "encoder-128", 60.7),
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
        encoder_steps: of an encoder that is trained for a row, as the demo's recipe begins.
    """

    steps: int = 1500
    batch: int = 8
    learning_rate: float = 1e-3
    episodes: int = 400
    encoder_steps: int = 3000


def new_model(base: UinoFSS, row: Row, seed: int) -> UinoFSS:
    """Return a row's model before any training: new prompts, the base's other parts.

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
    kept = ["decoder"]
    kept += [] if row.fresh_adapter else ["adapter"]
    kept += [] if row.encoder_width is not None else ["encoder"]
    for part in kept:
        model.get_submodule(part).load_state_dict(base.get_submodule(part).state_dict())
    return model.eval()


def run_row(
    key: str,
    seed: int,
    checkpoint: Path,
    folder: Path,
    budget: Budget,
    observe: Observer = lambda _progress: None,
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
    from uino_deploy.data.episode_list import draw_list
    from uino_deploy.data.open import open_dataset
    from uino_deploy.evaluation.segmenters import model_segmenter
    from uino_deploy.model.checkpoint import load_checkpoint
    from uino_deploy.training.episodic import EpisodicTraining
    from uino_deploy.training.loop import TrainingLoop
    from uino_deploy.training.processes import ALONE
    from uino_deploy.training.run_folder import prepare_folder
    from uino_deploy.training.schedule import Schedule

    own = folder / f"{key}-{seed}"
    settings: dict[str, Any] = {
        "row": key, "seed": seed, "checkpoint": sha256(checkpoint), **vars(budget),
    }  # fmt: skip
    prepare_folder(own, settings, resume=True, force=False, processes=ALONE)
    if (own / RESULTS).exists():
        return read_runs(own / RESULTS)[None]
    row = ROWS[key]
    model = new_model(load_checkpoint(checkpoint), row, seed)
    if row.encoder_width is not None:
        state = _trained_encoder(own / ENCODER, model.config, seed, budget.encoder_steps, observe)
        model.encoder.load_state_dict(state)
    # A character's mirror image is another character.
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
    episodes = draw_list(held_out, budget.episodes, 1, EPISODE_SEED)
    run = run_episodes(row.name, model_segmenter(model.eval()), held_out, episodes, done)
    _write(run, own / RESULTS)
    return run


def _trained_encoder(
    path: Path, config: UinoConfig, seed: int, steps: int, observe: Observer
) -> dict[str, Tensor]:
    """Return an encoder's weights after the demo recipe's first stage; kept in a file."""
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


def table(runs: dict[str, dict[int, Run]]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows: ours, the difference to the row compared with, and the paper's.

    Args:
        runs: by row and seed. The figure is the mean over the seeds. The first seed's difference
            has its interval: what the episodes leave open, not what another seed would change; the
            other seeds' differences stand beside it.
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
    """Return a Markdown text with the table of an ablation's document between its two marks.

    Args:
        page: the text.
        document: what `uino-deploy ablate --json` printed.

    Raises:
        InputError: the text has no marks.
    """
    header, *_ = rows = document["table"]
    return markdown.renew(
        page, "ablation", markdown.table(list(header), [list(row.values()) for row in rows])
    )


def _write(run: Run, path: Path) -> None:
    import json

    with atomic_file(path, force=True) as temporary:
        kept = {**run.document(), **detail({None: run})}
        temporary.write_text(json.dumps(kept, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Renew the table in a Markdown file: `ablation.py DOCUMENT PAGE`."""
    import json
    import sys

    document, page = map(Path, sys.argv[1:])
    found = json.loads(document.read_text("utf-8"))
    markdown.rewrite(page, lambda text: renew(text, found))


if __name__ == "__main__":
    main()
