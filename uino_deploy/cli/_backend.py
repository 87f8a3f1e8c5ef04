"""Options of the commands that run a bundle."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uino_deploy.cli._options import FILE
from uino_deploy.cli._signature import signature_option

if TYPE_CHECKING:
    from uino_deploy.cli._console import Output
    from uino_deploy.runtime import Predictor

# The runtime's, and the model itself: `--help` must not import the runtime.
NAMES = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "torch")


@dataclass(frozen=True)
class Load:
    """Opens a bundle as the options say; it can be pickled, for another process to open it."""

    backend: str
    provider: str | None
    threads: int | None
    cuda_graphs: bool
    torch_checkpoint: Path | None

    def __call__(self, bundle: Path) -> Predictor:
        """Return a predictor of the bundle."""
        from uino_deploy.runtime import Predictor

        if self.torch_checkpoint is not None or self.backend == "torch":
            return _load_torch(bundle, self.backend, self.torch_checkpoint)
        providers = None if self.provider is None else [self.provider]
        return Predictor.load(bundle, self.backend, providers, self.threads, self.cuda_graphs)


def backend_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--backend`, the backends' own options and `--require-signature`.

    The command receives `load`, a function from a bundle's path to a `Predictor`.
    """

    @click.option(
        "--backend",
        type=click.Choice(NAMES),
        default="onnxruntime",
        show_default=True,
        help="Inference backend.",
    )
    @click.option(
        "--provider",
        metavar="NAME[:KEY=VALUE,...]",
        help="ONNX Runtime's provider and its options: cpu, cuda, tensorrt, openvino or "
        "tensorrt-rtx.  [default: cpu]",
    )
    @click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
    @click.option(
        "--cuda-graphs", is_flag=True, help="Replay launches as CUDA graphs (TensorRT backends)."
    )
    @click.option(
        "--torch-checkpoint",
        type=FILE,
        help="The exported checkpoint, for --backend torch.",
    )
    @signature_option
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        backend: str,
        provider: str | None,
        threads: int | None,
        cuda_graphs: bool,
        torch_checkpoint: Path | None,
        **kwargs: Any,
    ) -> Any:
        load = Load(backend, provider, threads, cuda_graphs, torch_checkpoint)
        return command(*args, load=load, **kwargs)

    return wrapped


def warned(load: Callable[[Path], Predictor], output: Output) -> Callable[[Path], Predictor]:
    """Return a `load` that says where a bundle holds parts that nobody trained."""

    def loaded(bundle: Path) -> Predictor:
        predictor = load(bundle)
        untrained = predictor.bundle.manifest.provenance.untrained
        if untrained:
            output.warn(
                f"{bundle} holds random weights ({', '.join(untrained)}): its masks and scores "
                "mean nothing"
            )
        return predictor

    return loaded


def _load_torch(bundle: Path, backend: str, checkpoint: Path | None) -> Predictor:
    """Return a predictor whose backend is the model itself: it lies above the runtime."""
    from uino_deploy.bundle import Bundle
    from uino_deploy.dependencies import require
    from uino_deploy.runtime import Predictor

    if checkpoint is None or backend != "torch":
        raise click.UsageError("--backend torch needs --torch-checkpoint, and the reverse")
    require("export", "torch")
    from uino_deploy.export.torch_backend import TorchBackend

    return Predictor(Bundle.open(bundle), TorchBackend(checkpoint))
