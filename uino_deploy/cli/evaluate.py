"""`uino-deploy evaluate`: mIoU of a checkpoint or a bundle on a data set's episodes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from uino_deploy.cli._backend import backend_options, warned
from uino_deploy.cli._console import Output
from uino_deploy.cli._options import (
    DATASETS,
    FILE,
    FiniteRange,
    bits_option,
    force_option,
    label_option,
    output_options,
)

if TYPE_CHECKING:
    from uino_deploy.data.open import DatasetName
    from uino_deploy.evaluation.segmenters import Load
    from uino_deploy.runtime import Predictor

_ALL: Literal["all"] = "all"


@click.command()
@click.argument("source", metavar="CHECKPOINT_OR_BUNDLE")
@click.option("--dataset", type=click.Choice(DATASETS), required=True,
              help="The data set to evaluate on.")  # fmt: skip
@click.option("--data", type=FILE, metavar="DIR", help="The data set's folder.")
@click.option("--fold", type=click.Choice([*map(str, range(5)), _ALL]),
              help='The held-out fold of PASCAL-5i, COCO-20i or a folder; "all" evaluates every '
              'fold, and "{fold}" in a path stands for its number.')  # fmt: skip
@click.option("--shots", type=click.IntRange(1, 100), default=1, show_default=True,
              help="Support images per episode.")  # fmt: skip
@click.option("--episodes", type=click.IntRange(min=1), default=1000, show_default=True,
              help="Episodes to draw for each fold.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=2, show_default=True,
              help="Seed of the episodes.")  # fmt: skip
@click.option("--absent", type=FiniteRange(0, 1), default=0.0, show_default=True, metavar="SHARE",
              help="Share of the episodes whose query lacks the class; measures "
              "presence.")  # fmt: skip
@click.option("--instances", is_flag=True,
              help="Also count copies in as many drawn scenes (things-unseen-hand).")  # fmt: skip
@click.option("--episode-list", type=FILE,
              help="Read the episodes from this file instead of drawing them.")  # fmt: skip
@click.option("--write-episodes", type=FILE, help="Write the episodes to this file as JSON lines.")
@label_option
@bits_option
@click.option("--against", metavar="OTHER",
              help="Compare with this checkpoint, bundle or results file.")  # fmt: skip
@click.option("--against-backend", default="onnxruntime", show_default=True,
              help="Backend that runs OTHER if it is a bundle.")  # fmt: skip
@click.option("--max-miou-drop", type=FiniteRange(min=0), metavar="POINTS",
              help="Fail if the mIoU is lower than OTHER's by more than this.")  # fmt: skip
@click.option("-o", "--output", "path", type=FILE, help="Write the results to this file as JSON.")
@backend_options
@force_option
@output_options
def evaluate(
    source: str,
    dataset: DatasetName,
    data: Path | None,
    fold: str | None,
    shots: int,
    episodes: int,
    seed: int,
    absent: float,
    instances: bool,
    episode_list: Path | None,
    write_episodes: Path | None,
    label: int | None,
    bits: int | None,
    against: str | None,
    against_backend: str,
    max_miou_drop: float | None,
    path: Path | None,
    load: Load,
    force: bool,
    output: Output,
) -> None:
    """Measure mIoU and FB-IoU on episodes of held-out classes.

    For a folder, images are held out instead of classes. Intersections and unions are summed over a
    class's episodes at each image's own size, and pixels marked 255 are ignored. Intervals are 95 %
    bootstrap intervals over episodes, and over classes if there are 50 or more. Beside the model
    stand simple methods on the same episodes: mark everything, a colour histogram, prototypes.

    \b
    Examples:
      uino-deploy evaluate demo.uino --dataset demo
      uino-deploy evaluate vitb14.uino --dataset pascal --data VOC2012 --fold 0 \\
          --against vitb14.safetensors --max-miou-drop 0.5 -o fold0.json
      uino-deploy evaluate 'fold{fold}.safetensors' --dataset coco --data COCO2014 --fold all
    """
    from uino_deploy import evaluation
    from uino_deploy.runtime import Predictor

    def load_against(bundle: Path) -> Predictor:
        return Predictor.load(bundle, against_backend)

    report = evaluation.evaluate(
        source,
        dataset,
        data=data,
        fold=_ALL if fold == _ALL else None if fold is None else int(fold),
        shots=shots,
        episodes=episodes,
        seed=seed,
        absent=absent,
        instances=instances,
        episode_list=episode_list,
        write_episodes=write_episodes,
        label=label,
        bits=bits,
        against=against,
        max_miou_drop=max_miou_drop,
        output=path,
        force=force,
        load=warned(load, output),
        load_against=warned(load_against, output),
        progress=output.progress,
        warn=output.warn,
    )
    output.table(*report.paper_table)
    output.text()
    for sentence in report.sentences:
        output.text(sentence)
    if report.counting_table is not None:
        output.text()
        output.table(*report.counting_table)
    if report.class_table is not None:
        output.text()
        output.table(*report.class_table)
    output.document(report.document)
    if max_miou_drop is not None:
        output.verdict(report.failures)
