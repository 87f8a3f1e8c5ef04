"""`report_kernels`: count or load the ledger's records; write them as JSON, a page and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from uino_deploy.benchmarks.ledger.journal import Journal
from uino_deploy.benchmarks.ledger.markdown import renew
from uino_deploy.benchmarks.ledger.page import ledger_page
from uino_deploy.benchmarks.ledger.records import Instruments, records
from uino_deploy.benchmarks.ledger.store import load, select, text_of
from uino_deploy.config import PRESETS, UinoConfig
from uino_deploy.dependencies import require
from uino_deploy.errors import InputError
from uino_deploy.files import atomic_file
from uino_deploy.kernels.compiler.build import read
from uino_deploy.kernels.compiler.targets import ARCHITECTURES, DTYPES
from uino_deploy.markdown import rewrite


def report_kernels(
    presets: Sequence[str] = (),
    archs: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    *,
    everything: bool = False,
    cuda: str | None = None,
    built: Path | None = None,
    journal: Path | None = None,
    saved: Path | None = None,
    save: Path | None = None,
    html: Path | None = None,
    readme: Path | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _line: None,
) -> list[dict[str, Any]]:
    """Return a record of each kernel: its resources, work and memory traffic.

    Args:
        presets: models; vitb14 where none is given, or with `saved` all that it holds.
        archs: architectures, likewise sm_87.
        dtypes: element types, likewise float16.
        everything: count all models, architectures and types that are not restricted.
        cuda: the CUDA release to compile for; the oldest that supports the GPU when None.
        built: folder that `kernels build` wrote; its kernels are used instead of new ones.
        journal: cache of executed kernels to read and extend.
        saved: a saved ledger; its records are returned and nothing is compiled or executed.
        save: also write the records to this file as JSON.
        html: also write a page with plots.
        readme: also update the tables in this Markdown file.
        force: replace `save` and `html` where they exist.
        progress: called with a line about what is being done.

    Raises:
        InputError: an unknown preset, architecture, type or CUDA release; `saved` is no ledger.
        OutputExists: `save` or `html` exists and `force` is not given.
        BuildError: a kernel does not compile.
        DependencyError: a page is asked for, and what draws it is not installed.
    """
    if html is not None:
        require("pages", "jinja2", "matplotlib")
    for preset in presets:
        UinoConfig.from_preset(preset)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise InputError(f"unknown type {dtype!r}", f"choose from {', '.join(DTYPES)}")
    given = [list(presets), list(archs), list(dtypes)]
    if saved is not None:
        held = select(load(saved), *given)
    else:
        usual = [list(PRESETS), list(ARCHITECTURES), list(DTYPES)]
        if not everything:
            usual = [["vitb14"], ["sm_87"], ["float16"]]
        chosen = [own or other for own, other in zip(given, usual, strict=True)]
        kernels = [] if built is None else read(built)
        instruments = Instruments(chosen[0], cuda, kernels, Journal(journal), progress)
        held = list(records(instruments, *chosen))
    if save is not None:
        with atomic_file(save, force) as temporary:
            temporary.write_text(text_of(held), encoding="utf-8")
    if html is not None:
        with atomic_file(html, force) as temporary:
            temporary.write_text(ledger_page(held), encoding="utf-8")
    if readme is not None:
        rewrite(readme, lambda text: renew(text, held))
    return held
