"""The torch-free runtime on a real export gives what the PyTorch model gives."""

import numpy as np
import pytest
import torch

from tests.export.conftest import random_model
from uino_deploy.export import export_bundle
from uino_deploy.images import preprocess_image, preprocess_mask
from uino_deploy.runtime import Predictor, Support

# Float32 on both sides: the same sums in another order.
RELATIVE = 1e-4


@pytest.fixture(scope="session")
def compact(tmp_path_factory):
    """A compact variant: no hypercorrelation, so its supports hold no tokens."""
    model = random_model("comp-star")
    path = tmp_path_factory.mktemp("export") / "compact.uino"
    return model, export_bundle(model, path)


def scenes(count):
    rng = np.random.default_rng(3)
    for index in range(count):
        image = rng.integers(0, 256, (90 + 31 * index, 120, 3), dtype=np.uint8)
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[20:60, 30 : 70 + 5 * index] = 1
        yield image, mask


def reference(model, query, shots):
    size, patch = model.config.image_size, model.config.encoder.patch
    images = np.stack([preprocess_image(image, size) for image, _ in shots])
    masks = np.stack([preprocess_mask(mask, size, patch) for _, mask in shots])
    batch = [preprocess_image(query, size)[None], images[None], masks[None]]
    with torch.inference_mode():
        logits, iou = model(*map(torch.from_numpy, batch))
        mask = torch.nn.functional.interpolate(logits, size=query.shape[:2], mode="bilinear")
    return logits[0, 0].numpy(), float(iou), (mask[0, 0] > 0).numpy()


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("variant", ["full", "comp-star"])
def test_predictions_are_pytorchs(request, tmp_path, variant, shots):
    if variant == "full":
        model, bundle = request.getfixturevalue("model"), request.getfixturevalue("bundle")
    else:
        model, bundle = request.getfixturevalue("compact")
    predictor = Predictor.load(bundle.root, threads=1)
    (query, _), *pairs = scenes(shots + 1)
    support = predictor.enroll(pairs, name="thing", calibrated=False)
    assert (support.deep is None) == (variant == "comp-star")
    support.save(tmp_path / "thing.safetensors")
    result = predictor.predict(query, Support.load(tmp_path / "thing.safetensors"))
    logits, score, mask = reference(model, query, pairs)
    np.testing.assert_allclose(result.logits, logits, atol=RELATIVE * np.abs(logits).max())
    assert result.score == pytest.approx(score, rel=RELATIVE, abs=1e-6)
    assert result.mask.shape == query.shape[:2]
    assert (result.mask != mask).mean() < 1e-3
