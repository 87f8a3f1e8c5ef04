"""Options of the commands that run a bundle."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from uino_deploy.runtime import Predictor


def backend_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--backend`, `--provider`, `--threads`, `--cuda-graphs`.

    The command receives `load`, a function from a bundle's path to a `Predictor`.
    """

    @click.option("--backend", default="onnxruntime", show_default=True, help="What runs it.")
    @click.option(
        "--provider",
        metavar="NAME[:KEY=VALUE,...]",
        help="ONNX Runtime's provider and its options: cpu, cuda, tensorrt, openvino or "
        "tensorrt-rtx.  [default: cpu]",
    )
    @click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
    @click.option("--cuda-graphs", is_flag=True, help="Replay launches (TensorRT's backends).")
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        backend: str,
        provider: str | None,
        threads: int | None,
        cuda_graphs: bool,
        **kwargs: Any,
    ) -> Any:
        def load(bundle: Path) -> Predictor:
            from uino_deploy.runtime import Predictor

            providers = None if provider is None else [provider]
            return Predictor.load(bundle, backend, providers, threads, cuda_graphs)

        return command(*args, load=load, **kwargs)

    return wrapped
