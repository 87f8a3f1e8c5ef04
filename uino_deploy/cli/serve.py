"""`uino-deploy serve`: enroll and segment over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from uino_deploy.cli._backend import backend_options
from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, ByteSize, FiniteRange, output_options

if TYPE_CHECKING:
    from uino_deploy.runtime import Predictor


@click.command()
@click.argument("bundle", type=FILE)
@click.option(
    "--classes",
    required=True,
    type=FILE,
    help="Folder of the enrolled classes, NAME.safetensors each; made if it does not exist.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 for any that is free.",
)
@click.option(
    "--token-file", type=FILE, help="File of the token that requests must bring, as Bearer."
)
@click.option(
    "--proxied",
    is_flag=True,
    help="A proxy in front ends TLS and decides who may ask: answer without a token.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Processes that run the model, each with --threads.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 64),
    help="Most waiting images that share a run of the encoder.  [default: measured at the start]",
)
@click.option(
    "--max-body", type=ByteSize(), default="32MB", show_default=True, help="Largest body."
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=50_000_000,
    show_default=True,
    help="Pixels of the largest image.",
)
@click.option(
    "--max-classes",
    type=click.IntRange(1, 255),
    default=32,
    show_default=True,
    help="Most classes of a request.",
)
@click.option(
    "--queue",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Most requests that wait; a further one is answered 503.",
)
@click.option(
    "--deadline",
    type=FiniteRange(0.1, 3600),
    default=30.0,
    show_default=True,
    help="Seconds in which a request is answered.",
)
@backend_options
@output_options
def serve(
    bundle: Path,
    classes: Path,
    host: str,
    port: int,
    token_file: Path | None,
    proxied: bool,
    workers: int,
    batch: int | None,
    max_body: int,
    max_pixels: int,
    max_classes: int,
    queue: int,
    deadline: float,
    load: Callable[[Path], Predictor],
    output: Output,
) -> None:
    """Enroll classes and segment images over HTTP, with a page to try it.

    Classes are the support files in a folder: what `enroll` writes there is served at once, and
    what is enrolled over HTTP is a file that `predict` takes. SIGTERM ends the service when the
    requests that came are answered. It listens on this machine alone; any other address needs a
    token, or a proxy in front that ends TLS and decides who may ask.

    \b
    Examples:
      uino-deploy serve demo.uino --classes classes
      uino-deploy serve demo.uino --classes classes --host 0.0.0.0 --token-file token
      curl -X PUT -F image=@a.jpg -F mask=@a-mask.png http://127.0.0.1:8000/v1/classes/bottle
      curl -H 'Content-Type: image/jpeg' --data-binary @b.jpg \\
          'http://127.0.0.1:8000/v1/segment?classes=bottle'
    """
    from uino_deploy.dependencies import require

    require("serve", "starlette", "uvicorn", "prometheus_client", "python_multipart", "skimage")
    from uino_deploy.serving.guard import is_loopback
    from uino_deploy.serving.server import read_token, serve
    from uino_deploy.serving.settings import Limits, Settings

    limits = Limits(
        body=max_body, pixels=max_pixels, classes=max_classes, queue=queue, deadline=deadline
    )
    token = None if token_file is None else read_token(token_file)
    if token is not None and not is_loopback(host):
        output.warn("the token crosses the network as it is: put TLS in front")

    def listening(url: str) -> None:
        output.text(f"serving {bundle} at {url}, its description at {url}/docs")
        output.document({"bundle": str(bundle), "classes": str(classes), "url": url})

    settings = Settings(bundle, classes, load, workers, batch, limits)
    serve(settings, host, port, token, proxied, listening)
