"""Preprocessing of images and masks, and upsampling of logits."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from uino_deploy.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    preprocess_image,
    preprocess_mask,
    upsample_logits,
)

sides = st.integers(1, 70)
# A loaded machine must not fail a test for being slow.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_an_image_of_the_right_size_is_only_normalised(picture):
    square = picture[:28, :28]
    ready = preprocess_image(square, 28)
    assert ready.dtype == np.float32
    assert ready.flags.c_contiguous
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    expected = ((square / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(ready, expected, atol=1e-6)


def test_an_image_is_squashed_by_pillows_bicubic_filter(picture):
    ready = preprocess_image(picture, 14)
    resized = np.asarray(Image.fromarray(picture).resize((14, 14), Image.Resampling.BICUBIC))
    back = ready.transpose(1, 2, 0) * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)
    np.testing.assert_allclose(back * 255, resized, atol=1e-3)


def test_a_mask_is_averaged_patch_by_patch_row_by_row():
    mask = np.zeros((28, 42), np.uint8)
    mask[:14, 21:] = 200
    shares = preprocess_mask(mask, 28, 14)
    np.testing.assert_allclose(shares, [0, 1, 0, 0], atol=1e-6)


@unhurried
@given(
    grid=st.integers(1, 6),
    patch=st.integers(1, 14),
    factors=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 1000),
    density=st.floats(0, 1),
)
def test_whole_ratios_keep_a_masks_mean(grid, patch, factors, seed, density):
    size = grid * patch
    rng = np.random.default_rng(seed)
    mask = (rng.random((size * factors[0], size * factors[1])) < density).astype(np.uint8)
    shares = preprocess_mask(mask, size, patch)
    assert shares.shape == (grid**2,)
    assert abs(shares.mean(dtype=np.float64) - mask.mean()) < 1e-5


@unhurried
@given(height=sides, width=sides, grid=st.integers(1, 5), seed=st.integers(0, 1000))
def test_any_masks_shares_lie_in_the_unit_interval(height, width, grid, seed):
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 2, (height, width), dtype=np.uint8)
    shares = preprocess_mask(mask, grid * 14, 14)
    assert shares.dtype == np.float32
    assert shares.min() >= 0
    assert shares.max() <= 1
    assert (preprocess_mask(np.ones_like(mask), grid * 14, 14) == 1).all()
    assert (preprocess_mask(np.zeros_like(mask), grid * 14, 14) == 0).all()


@unhurried
@given(height=sides, width=sides, seed=st.integers(0, 1000))
def test_an_object_as_large_as_a_pixel_of_the_square_is_never_lost(height, width, seed):
    """A smaller one can be: of 66 pixels in a row that become 56, the box filter drops some."""
    mask = np.zeros((height, width), np.uint8)
    rng = np.random.default_rng(seed)
    row, column = rng.integers(height), rng.integers(width)
    down, across = -(-height // 56), -(-width // 56)
    row, column = min(row, height - down), min(column, width - across)
    mask[row : row + down, column : column + across] = 1
    assert preprocess_mask(mask, 56, 14).any()


@unhurried
@given(source=st.tuples(sides, sides), target=st.tuples(sides, sides), seed=st.integers(0, 1000))
def test_upsampling_is_pytorchs(source, target, seed):
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(seed).normal(size=source).astype(np.float32)
    # In float64: in float32 PyTorch rounds the coordinates too, which moves results by some 1e-5.
    exact = torch.from_numpy(logits).double()[None, None]
    expected = torch.nn.functional.interpolate(
        exact, size=target, mode="bilinear", align_corners=False
    )
    ours = upsample_logits(logits, *target)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected[0, 0].numpy(), atol=3e-6)
