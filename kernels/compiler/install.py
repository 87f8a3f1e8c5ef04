"""Compiled kernels in a folder, or in a bundle as `kernels/<arch>/` and in its manifest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from uino_deploy.bundle import Bundle
from uino_deploy.bundle.checked import kernels_folder
from uino_deploy.config import PRESETS, UinoConfig
from uino_deploy.errors import OutputExists
from uino_deploy.files import atomic_directory, refuse_read_only
from uino_deploy.kernels.compiler.build import Compiled, compile_models, write
from uino_deploy.kernels.compiler.targets import Target
from uino_deploy.workspace import locked, work_folder

Say = Callable[[str], None]


def build_folder(
    folder: Path,
    targets: Sequence[Target],
    presets: Sequence[str] = (),
    *,
    force: bool = False,
    progress: Say = lambda _note: None,
) -> list[Compiled]:
    """Compile presets' kernels for each target into a new folder.

    Args:
        folder: created, with the files of `write`.
        targets: architectures, each with a CUDA release.
        presets: models; all of them when empty.
        force: replace the folder if it exists.
        progress: called with a note for each target.

    Raises:
        InputError: an unknown preset.
        OutputExists: the folder exists and `force` is not given.
        BuildError: a kernel cannot be compiled.
    """
    models = [UinoConfig.from_preset(preset) for preset in presets or PRESETS]
    compiled = []
    with atomic_directory(folder, force) as temporary:
        for target in targets:
            progress(f"compiling for {target.arch}")
            compiled += compile_models(target, models)
        write(compiled, temporary)
    return compiled


def build_into(
    root: Path,
    targets: Sequence[Target],
    *,
    force: bool = False,
    progress: Say = lambda _note: None,
) -> list[Compiled]:
    """Compile the kernels of a bundle's own model for each target, and add them to the bundle.

    Args:
        root: the bundle's folder.
        targets: architectures, each with a CUDA release.
        force: replace kernels that the bundle has.
        progress: called with a note for each target.

    Raises:
        BundleError: no bundle, or a damaged one.
        InputError: it cannot be written to.
        OutputExists: it has kernels for a target and `force` is not given.
        BuildError: a kernel cannot be compiled.
    """
    bundle = Bundle.open(root)
    refuse_read_only(root)
    if not force:
        refuse_present(bundle, [target.arch for target in targets])
    entries = []
    for target in targets:
        progress(f"compiling for {target.arch}")
        compiled = compile_models(target, [bundle.config])
        install(root, target.arch, compiled)
        entries += compiled
    return entries


def refuse_present(bundle: Bundle, archs: Sequence[str]) -> None:
    """Refuse a bundle that has kernels of one of these architectures.

    Raises:
        OutputExists: the bundle has such kernels.
    """
    present = [arch for arch in archs if arch in bundle.manifest.kernels]
    if present:
        raise OutputExists(f"{bundle.root} has kernels for {', '.join(present)}", "use --force")


def install(root: Path, arch: str, compiled: Sequence[Compiled]) -> Bundle:
    """Add one architecture's kernels to a bundle, replacing those it has.

    The bundle opens at every instant: first the manifest drops the old files, then the folder is
    exchanged, then the manifest lists the new files.

    Raises:
        BundleError: the path is not a bundle, or the bundle does not open.
    """
    place = kernels_folder(arch)
    with work_folder(root, "kernels") as folder, locked(root):
        staged = folder / arch
        staged.mkdir()
        write(list(compiled), staged)
        files = [f"{place}/{path.name}" for path in sorted(staged.iterdir())]
        # Another command may have changed the bundle since the caller opened it, and checked its
        # signature: whatever is written from here on has to be signed again.
        bundle = Bundle.open(root, verify=False, require_signature=False)
        others = {name: where for name, where in bundle.manifest.kernels.items() if name != arch}
        old = [name for name in bundle.manifest.files if name.startswith(f"{place}/")]
        bundle = bundle.add((), without=old, kernels=others)
        shutil.rmtree(root / place, ignore_errors=True)
        (root / place).parent.mkdir(exist_ok=True)
        os.replace(staged, root / place)
        return bundle.add(files, kernels={**others, arch: place})
