"""Options that `distill` and `train --dataset` share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uino_deploy.cli._options import FILE, FiniteRange
from uino_deploy.config import VARIANTS, Variant
from uino_deploy.training.schedule import RunOptions

if TYPE_CHECKING:
    from uino_deploy.model.assembly import Assembly


def run_options(defaults: RunOptions) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of a run; the command receives `options: RunOptions` and `resume: bool`."""
    about: dict[str, tuple[click.ParamType[Any], str]] = {
        "batch": (click.IntRange(min=1), "Images or episodes per step, summed over processes."),
        "lr": (FiniteRange(min=0, min_open=True), "Peak learning rate of AdamW."),
        "warmup": (click.IntRange(min=0), "Steps over which the learning rate rises from zero."),
        "precision": (click.Choice(["fp32", "bf16"]), "fp32, or mixed precision with bf16."),
        "save_every": (click.IntRange(min=1), "Steps between saves; a kill loses at most these."),
        "seed": (click.IntRange(min=0), "Seed of untrained weights and of all random draws."),
    }
    options = [
        click.option(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=getattr(defaults, name),
            show_default=True,
            help=text,
        )
        for name, (kind, text) in about.items()
    ]
    options.append(
        click.option("--resume", is_flag=True, help="Continue the run in the output folder.")
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            values = {name: kwargs.pop(name) for name in about}
            return command(*args, options=RunOptions(**values), **kwargs)

        decorated: Callable[..., Any] = wrapped
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def start_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that define the model a run starts from; `start: Start` receives them."""

    @click.option("--checkpoint", type=FILE, help="Start from this uino-deploy checkpoint.")
    @click.option("--preset", help="Start from a preset, such as vitb14, and published weights.")
    @click.option("--variant", type=click.Choice(VARIANTS),
                  help="The preset's variant.  [default: full]")  # fmt: skip
    @click.option("--encoder-checkpoint", type=FILE,
                  help="DINOv2 checkpoint for the preset's encoder.")  # fmt: skip
    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        values = {name: kwargs.pop(name) for name in Start.__dataclass_fields__}
        return command(*args, start=Start(**values), **kwargs)

    return wrapped


@dataclass(frozen=True)
class Start:
    """The options that define the model a run starts from."""

    checkpoint: Path | None
    preset: str | None
    variant: Variant | None
    encoder_checkpoint: Path | None

    def assemble(self, sam_checkpoint: Path | None, seed: int) -> Assembly:
        """Load the model, or assemble it from its parts.

        Raises:
            UsageError: not exactly one of `--checkpoint` and `--preset` is given.
            CheckpointError: a checkpoint is unreadable or of another architecture.
        """
        from uino_deploy.config import UinoConfig
        from uino_deploy.model.assembly import assemble_from_checkpoint, assemble_from_parts

        if (self.checkpoint is None) == (self.preset is None):
            raise click.UsageError("give either --checkpoint or --preset")
        if self.checkpoint is not None:
            if self.encoder_checkpoint is not None or self.variant is not None:
                raise click.UsageError(
                    "--checkpoint holds the whole model: give no --encoder-checkpoint or --variant"
                )
            return assemble_from_checkpoint(self.checkpoint)
        config = UinoConfig.from_preset(str(self.preset), self.variant or "full")
        return assemble_from_parts(config, self.encoder_checkpoint, sam_checkpoint, seed)
