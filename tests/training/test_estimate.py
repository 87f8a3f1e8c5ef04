"""The table of estimates in docs/training.md is what `uino_deploy.training.estimate` counts."""

import pytest
import torch

from tests.pages import ROOT
from uino_deploy.config import UinoConfig
from uino_deploy.markdown import renew, rewrite, table
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.training.estimate import estimates, training_step

PAGE = ROOT / "docs" / "training.md"


def with_estimates(page: str) -> str:
    """Return the page with its table counted anew: `python -m tests.training.test_estimate`."""
    return renew(page, "estimates", table(*estimates()))


@pytest.mark.slow
def test_the_table_is_what_is_counted():
    page = PAGE.read_text(encoding="utf-8")
    assert with_estimates(page) == page


def test_a_linear_layers_operations_are_counted_as_expected():
    config = UinoConfig.from_preset("tiny")
    step = training_step("tiny", batch=1)
    encoder = config.encoder
    tokens, width = config.tokens + 1, encoder.width
    mlps = 2 * 2 * tokens * width * encoder.mlp_ratio * width
    attention = 2 * tokens * width * 4 * width + 2 * 2 * tokens**2 * width
    patches = 2 * config.tokens * width * 3 * encoder.patch**2
    assert step.encoder == 2 * (encoder.depth * (mlps + attention) + patches)
    assert step.hours(10, encoded=False) < step.hours(10)
    weights = sum(each.numel() for each in UinoFSS(config).parameters())
    assert step.memory > 4 * weights
    assert training_step("tiny", batch=2).encoder == 2 * step.encoder
    assert torch.get_default_device() == torch.device("cpu")


if __name__ == "__main__":
    rewrite(PAGE, with_estimates)
