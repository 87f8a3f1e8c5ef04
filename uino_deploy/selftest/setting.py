"""The settings of the self-test's processes, and the places of bundles and kernels."""

from __future__ import annotations

from pathlib import Path

import msgspec

from uino_deploy import assets
from uino_deploy.bundle import Bundle
from uino_deploy.bundle.checked import copy_kernels, kernels_folder
from uino_deploy.bundle.manifest import Precision
from uino_deploy.config import PRESETS, UinoConfig
from uino_deploy.dependencies import is_importable
from uino_deploy.selftest.findings import CannotCheck

CHECKPOINT = Path(assets.__path__[0]) / "tiny.safetensors"


class Setting(msgspec.Struct, kw_only=True):
    """One run of the self-test.

    Attributes:
        scratch: a folder for the run's own files; it is removed at the end.
        bundle: the bundle to check; None to export the bundled checkpoint.
        kernels: folder that `kernels build` wrote; the bundle's own, or new ones, if None.
        architecture: the GPU's, such as "sm_87"; empty without one.
        cuda: the CUDA release of its driver, such as "12.6"; empty without one.
        precision: what the bundled checkpoint is exported in, once for the whole run. Engines of
            the operators alone cover the other types.
    """

    scratch: str
    bundle: str | None = None
    kernels: str | None = None
    architecture: str = ""
    cuda: str = ""
    precision: Precision = "fp32"

    @property
    def labels(self) -> tuple[str, ...]:
        """What the bundles of this run are called: the given one, or the exported one's type."""
        return (self.precision if self.bundle is None else Path(self.bundle).name,)

    def precisions(self, label: str) -> set[str]:
        """Return the precisions of a bundle's pieces."""
        if self.bundle is None:
            return {label}
        pieces = Bundle.open(self.bundle, verify=False).manifest.pieces.values()
        return {piece.precision for piece in pieces}

    def open_bundle(self, label: str) -> Bundle:
        """Open one of the run's bundles.

        Raises:
            CannotCheck: the bundle could not be exported.
        """
        if self.bundle is not None:
            return Bundle.open(self.bundle)
        path = self.exported(label)
        if not path.is_dir():
            raise CannotCheck("no bundle: give one with --bundle, or install torch and onnx")
        return Bundle.open(path, verify=False, require_signature=False)

    def exported(self, label: str) -> Path:
        """Return the path of the bundled checkpoint's bundle, once exported."""
        return Path(self.scratch, f"{label}.uino")

    def config(self) -> UinoConfig:
        """Return the configuration of the model under test."""
        if self.bundle is None:
            return UinoConfig.from_preset("tiny")
        return Bundle.open(self.bundle, verify=False).config

    def configs(self) -> list[UinoConfig]:
        """Return the configurations whose operators are checked: all presets' without a bundle."""
        if self.bundle is None:
            return [UinoConfig.from_preset(preset) for preset in PRESETS]
        return [self.config()]

    def kernels_folder(self, architecture: str) -> Path:
        """Return a folder of kernels compiled for an architecture.

        Raises:
            CannotCheck: the kernels do not exist and Triton is not installed to compile them.
        """
        if self.kernels is not None:
            return Path(self.kernels)
        if self.bundle is not None:
            own = Path(self.scratch, "own-kernels")
            copied = own / kernels_folder(architecture)
            if copied.is_dir() or copy_kernels(Bundle.open(self.bundle), architecture, own):
                return copied
        made = self.compiled(architecture)
        if made.is_dir():
            return made
        missing = "" if is_importable("triton") else ", and Triton is not installed"
        raise CannotCheck(
            f"no compiled kernels for {architecture}{missing}: give them with --kernels "
            f"(uino-deploy kernels build --arch {architecture} -o DIR)"
        )

    def compiled(self, architecture: str) -> Path:
        """Return the path of this run's own kernels, once compiled."""
        return Path(self.scratch, "kernels", architecture)
