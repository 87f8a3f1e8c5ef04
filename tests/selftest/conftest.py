"""The kernels that a plugin would launch, compiled once for a run."""

import pytest

from tests.kernels.presets import preset_variants
from tests.selftest.faults import QUICK
from uino_deploy.kernels.compiler.build import compile_target, write
from uino_deploy.kernels.compiler.targets import target
from uino_deploy.kernels.plugins.library import Library
from uino_deploy.selftest.operators import EXECUTED


def library_of(made_once, name, wanted):
    names = [v.name for v in preset_variants(87) if wanted(v.name)]

    def make(folder):
        folder.mkdir()
        write(compile_target(target(EXECUTED, "12.6"), names=names), folder)

    return Library.open(made_once(name, make), EXECUTED)


@pytest.fixture(scope="session")
def quick_kernels(made_once):
    """One type and tiling of each operator."""
    return library_of(made_once, "quick-kernels", QUICK.__contains__)


@pytest.fixture(scope="session")
def every_kernel(made_once):
    """Every type and tiling that a preset uses."""
    return library_of(made_once, "every-kernel", lambda _name: True)
