"""The gate: its measurements, and its message for a model that falls short."""

from dataclasses import replace

import torch

from uino_deploy.config import UinoConfig
from uino_deploy.evaluation.episodes import Evaluation
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.training.gate import measure, shortfalls
from uino_deploy.training.recipe import RECIPES

DEMO = RECIPES["demo"]


def test_the_demo_recipe_asks_for_what_was_promised():
    assert DEMO.required_miou == {"held-out": 72.0, "digits": 53.0}
    assert DEMO.judged_on == 1000


def test_an_untrained_model_falls_short_on_every_pool():
    torch.manual_seed(0)
    model = UinoFSS(UinoConfig.from_preset("tiny")).eval()
    calls = []
    measured = measure(model, replace(DEMO, judged_on=5), lambda: calls.append(1))
    assert list(measured) == ["held-out", "digits"]
    assert len(calls) == 10
    assert len(shortfalls(DEMO, measured)) == 2


def test_a_shortfall_names_the_pool_and_both_numbers():
    measured = {"held-out": Evaluation(71.94, 80, 1000), "digits": Evaluation(53.0, 70, 1000)}
    assert shortfalls(DEMO, measured) == ["mIoU of held-out is 71.9, below 72.0"]
