"""Architectures, CUDA releases, and which of them know each other."""

import pytest

from uino_deploy.errors import InputError
from uino_deploy.kernels.compiler.targets import ARCHITECTURES, target


def test_every_architecture_has_a_release():
    for arch in ARCHITECTURES:
        assert target(arch, "13.2").arch == arch


@pytest.mark.parametrize("arch", ["sm_100", "sm_103", "sm_110", "sm_120", "sm_121"])
def test_a_release_older_than_the_architecture_is_a_usage_error(arch):
    with pytest.raises(InputError, match=f"does not know {arch}.*13.0") as caught:
        target(arch, "12.6")
    assert caught.value.exit_code == 2


def test_the_isa_is_the_releases_unless_the_assembler_is_older():
    assert target("sm_90", "13.0").ptx_isa == 90
    assert target("sm_87", "12.6").ptx_isa == 85
    assert target("sm_87", "13.2").ptx_isa == 88


@pytest.mark.parametrize(("arch", "cuda"), [("sm_50", "12.6"), ("sm_80", "11.8")])
def test_unknown_names_list_the_known_ones(arch, cuda):
    with pytest.raises(InputError, match="choose from"):
        target(arch, cuda)
