"""Puts compiled kernels into a bundle, as `kernels/<arch>/` and the manifest's `kernels`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from uino_deploy.bundle import Bundle
from uino_deploy.errors import OutputExists
from uino_deploy.files import locked
from uino_deploy.kernels.compiler.build import Compiled, write


def folder_of(arch: str) -> str:
    """Return where an architecture's kernels lie in a bundle."""
    return f"kernels/{arch}"


def refuse_present(bundle: Bundle, archs: Sequence[str]) -> None:
    """Refuse a bundle that has kernels of one of these architectures.

    Raises:
        OutputExists: it has.
    """
    present = [arch for arch in archs if arch in bundle.manifest.kernels]
    if present:
        raise OutputExists(f"{bundle.root} has kernels for {', '.join(present)}", "use --force")


def install(root: Path, arch: str, compiled: Sequence[Compiled]) -> Bundle:
    """Add one architecture's kernels to a bundle, in place of those it has.

    The bundle opens at every instant: first the manifest stops listing what is to go, then the
    folder is exchanged, then the manifest lists the new one.

    Raises:
        BundleError: no bundle, or one that does not open.
    """
    place = folder_of(arch)
    with tempfile.TemporaryDirectory(dir=root, prefix=".kernels-") as folder, locked(root):
        staged = Path(folder, arch)
        staged.mkdir()
        write(list(compiled), staged)
        files = [f"{place}/{path.name}" for path in sorted(staged.iterdir())]
        # Another command may have added to the bundle since the caller opened it.
        bundle = Bundle.open(root, verify=False)
        others = {name: where for name, where in bundle.manifest.kernels.items() if name != arch}
        old = [name for name in bundle.manifest.files if name.startswith(f"{place}/")]
        bundle = bundle.add((), without=old, kernels=others)
        shutil.rmtree(root / place, ignore_errors=True)
        (root / place).parent.mkdir(exist_ok=True)
        os.replace(staged, root / place)
        return bundle.add(files, kernels={**others, arch: place})
