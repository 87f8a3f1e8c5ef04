"""Options and talk that `distill` and `train --dataset` share."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE

if TYPE_CHECKING:
    from uino_deploy.config import Variant
    from uino_deploy.model.assembly import Assembly
    from uino_deploy.training.loop import Position

_SECONDS_BETWEEN_LINES = 30.0
_VARIANTS = ("comp-star", "comp", "full", "cp4d")


@dataclass(frozen=True)
class Pace:
    """The options of a run's steps; see `pace_options`."""

    batch: int
    lr: float
    warmup: int
    precision: Literal["fp32", "bf16"]
    save_every: int
    seed: int
    resume: bool

    @property
    def lasting(self) -> dict[str, Any]:
        """What the result depends on."""
        kept = ("batch", "lr", "warmup", "precision", "seed")
        return {name: getattr(self, name) for name in kept}


def pace_options(lr: float, batch: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of a run's steps; the command receives them as `pace: Pace`.

    Args:
        lr: the default learning rate.
        batch: the default batch.
    """
    options = [
        click.option("--batch", type=click.IntRange(min=1), default=batch, show_default=True,
                     help="Of a step, over all processes."),
        click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=lr,
                     show_default=True, help="Highest learning rate of AdamW."),
        click.option("--warmup", type=click.IntRange(min=0), default=100, show_default=True,
                     help="Steps over which it rises; then half a cosine."),
        click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32",
                     show_default=True, help="bf16: mixed precision."),
        click.option("--save-every", type=click.IntRange(min=1), default=200, show_default=True,
                     help="Steps between saves: what a kill costs at most."),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
                     help="Of untrained weights and of what is drawn."),
        click.option("--resume", is_flag=True, help="Go on where the run in the output stopped."),
    ]  # fmt: skip

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            taken = {name: kwargs.pop(name) for name in Pace.__dataclass_fields__}
            return command(*args, pace=Pace(**taken), **kwargs)

        decorated: Callable[..., Any] = wrapped
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def start_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which model a run begins with; `start: Start` receives them."""

    @click.option("--checkpoint", type=FILE, help="Begin with this checkpoint of our own.")
    @click.option("--preset", help="Begin with a preset, such as vitb14, and published weights.")
    @click.option("--variant", type=click.Choice(_VARIANTS), help="Of the preset.  [default: full]")
    @click.option("--encoder-checkpoint", type=FILE, help="DINOv2's, for the preset.")
    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        taken = {name: kwargs.pop(name) for name in Start.__dataclass_fields__}
        return command(*args, start=Start(**taken), **kwargs)

    return wrapped


@dataclass(frozen=True)
class Start:
    """Which model a run begins with."""

    checkpoint: Path | None
    preset: str | None
    variant: Variant | None
    encoder_checkpoint: Path | None

    def assemble(self, sam_checkpoint: Path | None, seed: int) -> Assembly:
        """Load the model, or put it together.

        Raises:
            UsageError: not exactly one of `--checkpoint` and `--preset` is given.
            CheckpointError: a checkpoint is unreadable or of another architecture.
        """
        from uino_deploy.config import UinoConfig
        from uino_deploy.model.assembly import assemble_from_checkpoint, assemble_from_parts

        if (self.checkpoint is None) == (self.preset is None):
            raise click.UsageError("give --checkpoint, or --preset")
        if self.checkpoint is not None:
            if self.encoder_checkpoint is not None or self.variant is not None:
                raise click.UsageError("--checkpoint is the whole model: give it alone")
            return assemble_from_checkpoint(self.checkpoint)
        config = UinoConfig.from_preset(str(self.preset), self.variant or "full")
        return assemble_from_parts(config, self.encoder_checkpoint, sam_checkpoint, seed)


def identity(assembly: Assembly) -> Mapping[str, Any]:
    """Return what tells a run's first model from another's."""
    return {
        "model": assembly.model.config.to_dict(),
        "sources": {source.role: source.sha256 for source in assembly.sources},
    }


def narrator(output: Output, stages: int) -> Callable[[Position], None]:
    """Return an observer of an engine that says now and then how far it is."""
    said = time.monotonic()

    def tell(position: Position) -> None:
        nonlocal said
        last = position.step == position.steps
        if not last and time.monotonic() - said < _SECONDS_BETWEEN_LINES:
            return
        said = time.monotonic()
        output.log(
            f"stage {position.stage + 1} of {stages}: step {position.step} of {position.steps}, "
            f"loss {position.loss:.4g}, {position.seconds_left / 60:.1f} min left"
        )

    return tell
