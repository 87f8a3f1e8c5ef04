"""Every part matters to the mask: with a part's output zeroed or shuffled the logits move.

A model whose logits do not depend on a part proves nothing of that part's kernels or export.
"""

from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from uino_deploy import UinoConfig, UinoFSS
from uino_deploy.config import PRESETS, VARIANTS
from uino_deploy.model import load_checkpoint
from uino_deploy.model.hypercorrelation import Operators
from uino_deploy.model.prompt_generator import PromptGenerator
from uino_deploy.training.recipe import RECIPES

# Relative L2 of the logits: ten thousand times float32's rounding of a whole model.
LEAST = 1e-2
TRAINED_TINY = Path(__file__).parents[2] / "uino_deploy/assets/tiny.safetensors"
# 9 x 9 tokens: pooled 3 x 3, then 2 x 2 and 1 x 1 support cells.
SIZE = {"tiny": None}
SMALL = 14 * 9
QUICK = ("tiny", "vits14")
# An operator of a plane's scan, and which of its results. The prologue also gives the packed
# projection, from which the scan has its steps and its state: see `states_of`.
OPERATORS_OF_A_PLANE = (("prologue", 0), ("scan", None), ("epilogue", None))


def zeroed(output):
    return torch.zeros_like(output)


def shuffled(output):
    """The elements in another order, drawn once for each shape."""
    order = torch.randperm(output.numel(), generator=torch.Generator().manual_seed(5))
    return output.flatten()[order].reshape(output.shape)


@contextmanager
def module_output(module, change):
    handle = module.register_forward_hook(lambda _module, _inputs, output: change(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replaced(owner, name, function):
    original = getattr(owner, name)
    setattr(owner, name, function(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def operator(owner, name, change, which=None):
    """Change what one operator of a module gives: its result, or one of several."""

    def changed(operators):
        original = getattr(operators, name)

        def run(*arguments):
            out = original(*arguments)
            if which is None:
                return change(out)
            return tuple(change(o) if index == which else o for index, o in enumerate(out))

        return operators._replace(**{name: run})

    return replaced(owner, "operators", changed)


def parts_of(model):
    """Return a context manager for each part of a model, by the part's name and a change."""
    prompt = model.prompt_generator
    parts = {
        "adapter": lambda change: module_output(model.adapter, change),
        "PCS": lambda change: module_output(prompt.similarity, change),
        "SVP": lambda change: module_output(prompt.semantic, change),
    }
    if prompt.hypercorrelation is None:
        return parts

    parts["correlation"] = lambda change: operator(prompt.hypercorrelation, "correlate", change)
    parts["hypercorrelation"] = lambda change: module_output(prompt.hypercorrelation, change)
    for index, block in enumerate(prompt.hypercorrelation.blocks):
        for plane in ("query", "support"):
            scan = getattr(block.mixer, f"{plane}_scan", None)
            if scan is not None:
                for name, which in OPERATORS_OF_A_PLANE:
                    part = partial(operator, scan, name, which=which)
                    parts[f"{name}, {plane} plane, block {index}"] = part
            else:
                convolution = getattr(block.mixer, f"{plane}_conv")
                parts[f"{plane} plane, block {index}"] = partial(module_output, convolution)
        parts[f"mlp, block {index}"] = partial(operator, block, "mlp")
    return parts


def states_of(model):
    """Return a part for each scan's state: without its projection a scan gives skip * x alone."""
    return {
        f"state, {plane} plane, block {index}": partial(
            operator, getattr(block.mixer, f"{plane}_scan"), "prologue", which=1
        )
        for index, block in enumerate(model.prompt_generator.hypercorrelation.blocks)
        for plane in ("query", "support")
    }


@contextmanager
def without_contrast(_change):
    """CE switched off: w = m in place of 2m - 1, and the background left out of PCS."""

    def features(original):
        def run(self, deep, mask):
            found = original(self, deep, mask)
            return found._replace(weight=mask.to(deep.dtype))

        return run

    with replaced(PromptGenerator, "support_features", features):
        yield


def inputs_of(config):
    generator = torch.Generator().manual_seed(3)
    size, side = config.image_size, config.grid
    images = torch.randn(3, 3, size, size, generator=generator)
    masks = torch.zeros(1, 2, side, side)
    masks[..., side // 4 : side // 2 + 1, side // 3 : side // 3 * 2 + 1] = 1.0
    return images[:1], images[None, 1:], masks.flatten(2)


def changes(model, inputs, parts):
    """Return, for each part and change, the relative L2 change of the logits."""
    with torch.inference_mode():
        plain, _ = model(*inputs)
        found = {}
        for name, part in parts.items():
            for change in (zeroed, shuffled):
                with ExitStack() as stack:
                    stack.enter_context(part(change))
                    logits, _ = model(*inputs)
                found[name, change.__name__] = ((logits - plain).norm() / plain.norm()).item()
    return found


def test_every_operator_of_the_model_is_a_part():
    """A new operator is listed here, or nothing would show that it matters."""
    model = UinoFSS(UinoConfig.from_preset("tiny"))
    scans = {name for name, _ in OPERATORS_OF_A_PLANE}
    assert {"correlate", "mlp"} | scans == set(Operators._fields)
    assert sum(name.startswith((*scans, "mlp")) for name in parts_of(model)) == 2 * (2 * 3 + 1)
    assert len(states_of(model)) == 2 * 2


SHAPES = {"tiny": UinoConfig.from_preset("tiny"), "things": RECIPES["things"].model}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_state_moves_the_logits_where_steps_are_long(shape):
    """A training may reach such weights: steps of 6 and a projection 20 times as large."""
    torch.manual_seed(7)
    model = UinoFSS(shape).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("x_proj.weight"):
            parameter.data *= 20
        elif name.endswith("dt_bias"):
            parameter.data += 6
    found = changes(model, inputs_of(shape), states_of(model))
    assert min(found.values()) > LEAST, found


@pytest.mark.xfail(
    strict=True,
    reason="Mamba's initialisation gives steps of 0.001 to 0.1: a state is 1e-4 to 1e-2 of what a "
    "scan gives, the logits hardly move, and a seeded or briefly trained model shows nothing of it",
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_state_of_a_seeded_model_moves_the_logits(shape):
    torch.manual_seed(7)
    model = UinoFSS(shape).eval()
    found = changes(model, inputs_of(shape), states_of(model))
    assert min(found.values()) > LEAST, found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "preset",
    [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in sorted(PRESETS)],
)
def test_every_part_of_a_seeded_model_moves_the_logits(preset, variant):
    torch.manual_seed(7)
    config = UinoConfig.from_preset(preset, variant, SIZE.get(preset, SMALL))
    model = UinoFSS(config).eval()
    parts = parts_of(model)
    if config.prompt.contrastive:
        parts["CE"] = without_contrast
    found = changes(model, inputs_of(config), parts)
    assert min(found.values()) > LEAST, found


def test_every_part_of_the_small_shape_moves_the_logits():
    torch.manual_seed(7)
    shape = RECIPES["things"].model
    model = UinoFSS(shape).eval()
    found = changes(model, inputs_of(shape), parts_of(model) | {"CE": without_contrast})
    assert min(found.values()) > LEAST, found


@pytest.mark.xfail(
    strict=True,
    reason="the bundled tiny's second plane norm sees two elements a group, so the correlation, "
    "the first block's scans and CE move nothing (1e-6); a new shape must replace it",
)
def test_every_part_of_the_trained_model_moves_the_logits():
    model = load_checkpoint(TRAINED_TINY).eval()
    parts = parts_of(model) | {"CE": without_contrast}
    found = changes(model, inputs_of(model.config), parts)
    assert min(found.values()) > LEAST, found
