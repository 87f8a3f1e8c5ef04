"""One model and one exported bundle for all tests of the export."""

from pathlib import Path

import pytest
import torch

from uino_deploy.bundle import Bundle
from uino_deploy.config import UinoConfig
from uino_deploy.export import export_bundle
from uino_deploy.model.segmenter import UinoFSS


def random_model(variant: str = "full") -> UinoFSS:
    """A tiny model with random weights and BatchNorm statistics, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = UinoFSS(UinoConfig.from_preset("tiny", variant)).eval()
        for name, buffer in model.adapter.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
        for parameter in model.parameters():  # LayerNorms and biases as a trained model has them
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="session")
def model() -> UinoFSS:
    return random_model()


@pytest.fixture(scope="session")
def bundle(model: UinoFSS, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("export") / "tiny.uino"
    return export_bundle(model, path, seed=7, untrained=["encoder"])


@pytest.fixture
def damaged(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the bundle to do harm to."""
    import shutil

    return Path(shutil.copytree(bundle.root, tmp_path / "damaged.uino"))
