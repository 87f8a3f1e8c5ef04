"""Architectures, CUDA releases, and which of them know each other."""

import pytest

from uino_deploy.errors import BuildError, InputError
from uino_deploy.kernels.compiler.targets import ARCHITECTURES, isa_for, target


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


@pytest.mark.parametrize(
    ("arch", "assembler", "isa"),
    [("sm_90", "12.8", 87), ("sm_90", "13.4", 90), ("sm_87", "12.9", 88), ("sm_80", "12.8", 87)],
)
def test_the_assembler_at_hand_caps_the_isa(arch, assembler, isa):
    """Triton 3.6 sends sm_90 to the ptxas of CUDA 12.8, which refuses `.version 9.0`."""
    assert isa_for(target(arch, "13.0"), assembler) == isa


def test_an_assembler_older_than_the_architecture_is_named():
    with pytest.raises(
        BuildError, match=r"ptxas of CUDA 12\.8 .* PTX up to 8\.7, and sm_110 needs"
    ):
        isa_for(target("sm_110", "13.0"), "12.8")


@pytest.mark.parametrize(("arch", "cuda"), [("sm_50", "12.6"), ("sm_80", "11.8")])
def test_unknown_names_list_the_known_ones(arch, cuda):
    with pytest.raises(InputError, match="choose from"):
        target(arch, cuda)
