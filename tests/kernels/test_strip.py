"""Hidden parameters leave a kernel's entry only when nothing needs them."""

import pytest

from uino_deploy.errors import BuildError
from uino_deploy.kernels.compiler.strip import strip_hidden

SCRATCH = ".param .u64 .ptr .global .align 1 k_param_{}"
HARMLESS = {"name": "k", "global_scratch_size": 0, "profile_scratch_size": 0, "num_ctas": 1}


def module(body="ret;", hidden=(2, 3)):
    parameters = [".param .u64 .ptr .global .align 1 k_param_0", ".param .u32 k_param_1"]
    parameters += [SCRATCH.format(i) for i in hidden]
    listed = ",\n\t".join(parameters)
    return f".version 8.5\n.target sm_80\n.visible .entry k(\n\t{listed}\n)\n{{\n{body}\n}}\n"


def test_hidden_parameters_go_and_declared_ones_stay():
    stripped = strip_hidden(module(), HARMLESS, 2)
    assert stripped == module(hidden=())


def test_a_kernel_without_hidden_parameters_is_left_alone():
    assert strip_hidden(module(hidden=()), HARMLESS, 2) == module(hidden=())


def test_a_read_of_a_hidden_parameter_is_refused():
    with pytest.raises(BuildError, match="reads its hidden parameter k_param_3"):
        strip_hidden(module("ld.param.b64 %rd1, [k_param_3];"), HARMLESS, 2)


def test_a_longer_name_is_not_a_read():
    strip_hidden(module("ld.param.b64 %rd1, [k_param_31];"), HARMLESS, 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("global_scratch_size", 128), ("profile_scratch_size", 8), ("num_ctas", 2)),
        *(("launch_cooperative_grid", True), ("launch_pdl", True)),
    ],
)
def test_what_a_plain_launch_cannot_give_is_refused(key, value):
    with pytest.raises(BuildError, match=key):
        strip_hidden(module(), HARMLESS | {key: value}, 2)


def test_a_trailing_parameter_of_another_kind_is_refused():
    with pytest.raises(BuildError, match="not a scratch address"):
        strip_hidden(module().replace(SCRATCH.format(3), ".param .u32 k_param_3"), HARMLESS, 2)


def test_too_few_parameters_are_refused():
    with pytest.raises(BuildError, match="2 parameters, expected 5"):
        strip_hidden(module(hidden=()), HARMLESS, 5)


def test_two_entries_are_refused():
    with pytest.raises(BuildError, match="2 entries"):
        strip_hidden(module() + module(), HARMLESS, 2)
