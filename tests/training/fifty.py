"""Fifty montages of one pasted thing for `train --dataset folder`, and the time of its steps.

python -m tests.training.fifty hotdogs            # writes hotdogs/images and hotdogs/masks
python -m tests.training.fifty hotdogs --times    # and times steps of the bundled model on them
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from uino_deploy.data.folder import Folder
from uino_deploy.data.montages import compose_montage
from uino_deploy.data.things import UNSEEN_HAND, Things
from uino_deploy.model.checkpoint import load_checkpoint
from uino_deploy.training.episodic import LEARNING, EpisodicTraining
from uino_deploy.training.optimiser import Optimiser
from uino_deploy.training.processes import ALONE
from uino_deploy.training.reporting import LOGGING
from uino_deploy.training.schedule import EPISODIC
from uino_deploy.training.token_cache import TokenSource

MODEL = Path(__file__).parents[2] / "uino_deploy" / "assets" / "tiny.safetensors"
SIDE, STEPS, FIRST = 256, 30, 14  # pixels; steps, and those before the tokens are kept


def write_montages(folder: Path, name: str = "hot dog", count: int = 50) -> None:
    """Write montages of one or two of a thing on photographs, and their masks."""
    things = Things.load()
    tile = things.tiles[UNSEEN_HAND][things.names.index(name)]
    grounds = [
        each for split in ("base", "held-out") for each in things.photographs[split].values()
    ]
    rng = np.random.default_rng(1)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        tiles = [tile] * int(rng.integers(1, 3))
        ground = grounds[int(rng.integers(len(grounds)))]
        montage = compose_montage(tiles, ground, rng, SIDE, alike=len(tiles))
        mask = 255 * montage.masks.any(axis=0).astype(np.uint8)
        Image.fromarray(montage.image).save(folder / f"images/{number:04d}.jpg", quality=95)
        Image.fromarray(mask).save(folder / f"masks/{number:04d}.png")


def step_seconds(data: Path, kept: Path | None) -> float:
    """Return the median CPU seconds of a step of 8 episodes, with or without kept tokens."""
    model = load_checkpoint(MODEL)
    source = TokenSource(model.encoder, model.config, "fp32", kept, LOGGING)
    task = EpisodicTraining(
        model, LEARNING["full"], Folder(data, 0, "train"), 1, 8, 0, ALONE, source=source
    ).train()
    optimiser = Optimiser(dict(task.trained.named_parameters()), EPISODIC.schedule(STEPS))
    seconds = []
    for step in range(STEPS):
        began = time.process_time()
        optimiser.step(task(0, step), step)
        seconds.append(time.process_time() - began)
    return statistics.median(seconds[FIRST:])


def main(folder: str, *options: str) -> None:
    """Write the montages; time the steps if asked."""
    write_montages(Path(folder))
    if options:
        with tempfile.TemporaryDirectory() as place:
            for what, kept in (("encoder in every step", None), ("kept tokens", Path(place))):
                seconds = step_seconds(Path(folder), kept)
                sys.stdout.write(f"{what}: {1000 * seconds:.0f} ms of CPU time a step\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
