"""A picture in another style is still a picture of the same thing, and really another picture."""

import numpy as np
from PIL import Image

from uino_deploy.data import styles
from uino_deploy.data.styles import restyle
from uino_deploy.data.things import Things

TILE = Things.load().tiles["noto"][1]


def ink(picture: Image.Image) -> np.ndarray:
    cut = picture.crop(picture.getchannel("A").getbbox()).resize((32, 32))
    return np.asarray(cut)[..., 3] > 127


def test_it_depends_on_the_generator_alone():
    one, again, other = (restyle(TILE, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one.tobytes() == again.tobytes() != other.tobytes()


def test_the_thing_keeps_most_of_its_shape():
    shape = ink(TILE)
    for seed in range(40):
        styled = restyle(TILE, np.random.default_rng(seed))
        assert styled.mode == "RGBA"
        found = ink(styled)
        assert (found & shape).sum() > 0.5 * (found | shape).sum()


def test_an_even_mesh_only_adds_a_margin(monkeypatch):
    monkeypatch.setattr(styles, "_BEND", 0.0)
    bent = styles._bent(TILE, np.random.default_rng(0))
    margin = (bent.size[0] - TILE.size[0]) // 2
    assert margin > 0
    inner = np.asarray(bent)[margin:-margin, margin:-margin, 3] > 127
    alpha = np.asarray(TILE)[..., 3] > 127
    # A mesh's corners are rounded to whole pixels.
    assert (inner & alpha).sum() > 0.8 * (inner | alpha).sum()


def test_shading_keeps_alpha_and_lights_opposite_sides_differently():
    disc = np.zeros((64, 64, 4), np.uint8)
    rows, columns = np.mgrid[:64, :64] - 31.5
    disc[rows**2 + columns**2 < 28**2] = (128, 128, 128, 255)
    differences = []
    for seed in range(8):
        lit = np.asarray(styles._shaded(Image.fromarray(disc), np.random.default_rng(seed)))
        np.testing.assert_array_equal(lit[..., 3], disc[..., 3])
        rim = [int(lit[32, 6, 0]) - int(lit[32, 57, 0]), int(lit[6, 32, 0]) - int(lit[57, 32, 0])]
        differences.append(max(map(abs, rim)))
    assert min(differences) > 5


def test_few_colours_are_left_of_a_flat_picture_and_an_outline_is_dark():
    flat = np.asarray(styles._flat(TILE, 4))
    assert len(np.unique(flat[..., :3].reshape(-1, 3), axis=0)) <= 4
    lined = np.asarray(styles._outlined(TILE, np.random.default_rng(0)))
    added = (lined[..., 3] > 200) & (np.asarray(TILE)[..., 3] < 10)
    assert added.any()
    assert lined[added][:, :3].max() < 90
