"""The atlas of things: exact alpha, a clean split, and episodes that keep their promises."""

import hashlib
import io
import json
import zipfile
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from uino_deploy.data.montages import Light, compose_montage
from uino_deploy.data.thing_episodes import ThingScene, sample_episode, sample_scenes
from uino_deploy.data.things import HANDS, KNOWN_HANDS, UNSEEN_HAND, Things

THINGS = Things.load()


@pytest.fixture(scope="module")
def scenes() -> list[ThingScene]:
    return sample_scenes(np.random.default_rng(5), 120)


@pytest.fixture(scope="module")
def atlas() -> zipfile.ZipFile:
    return zipfile.ZipFile(
        io.BytesIO(files("uino_deploy.data").joinpath("things.zip").read_bytes())
    )


@pytest.mark.parametrize("hand", HANDS)
def test_the_alpha_is_that_of_the_packages_pictures(atlas, hand):
    index = json.loads(atlas.read("index.json"))
    sheet = Image.open(io.BytesIO(atlas.read(f"{hand}.webp"))).convert("RGBA")
    assert (
        hashlib.sha256(sheet.getchannel("A").tobytes()).hexdigest() == index["alpha_sha256"][hand]
    )


def test_the_atlas_is_small_and_its_notice_names_every_part(atlas):
    assert sum(member.compress_size for member in atlas.infolist()) < 6_000_000
    notice = files("uino_deploy.data").joinpath("things_notice.txt").read_text()
    for member in atlas.namelist():
        if member.endswith(".webp"):
            assert (
                member.removeprefix("photographs/").removesuffix(".webp" if "/" in member else "")
                in notice
            )


def test_no_group_and_no_photograph_is_on_both_sides_of_the_split():
    base, held_out = THINGS.concepts("base"), THINGS.concepts("held-out")
    assert len(base) + len(held_out) == len(THINGS.names) == len(set(THINGS.names))
    assert not set(THINGS.groups[base]) & set(THINGS.groups[held_out])
    assert len(held_out) >= 100
    grounds = THINGS.photographs
    assert not grounds["base"].keys() & grounds["held-out"].keys()
    assert UNSEEN_HAND not in KNOWN_HANDS


@pytest.mark.parametrize(
    "names", [("dog", "poodle"), ("taxi", "oncoming taxi"), ("tiger", "leopard")]
)
def test_near_duplicates_are_in_one_group(names):
    one, other = (THINGS.groups[THINGS.names.index(name)] for name in names)
    assert one == other


@pytest.mark.parametrize("hand", HANDS)
def test_colour_twins_share_more_colours_than_others_do_and_are_no_near_duplicates(hand):
    nearer, means = [], np.array([_mean_colour(tile) for tile in THINGS.tiles[hand]])
    for concept in THINGS.concepts("held-out")[::4].tolist():
        twins, others = THINGS.colour_twins(hand, concept), THINGS.others(concept)
        assert set(twins) < set(others)
        assert concept not in others
        of_twins, of_others = (
            np.median(np.linalg.norm(means[each] - means[concept], axis=1))
            for each in (twins, others)
        )
        nearer.append(of_twins / of_others)
    assert np.mean(nearer) < 0.6


def _mean_colour(tile: Image.Image) -> np.ndarray:
    pixels = np.asarray(tile)
    return pixels[pixels[..., 3] > 127, :3].mean(axis=0)


def test_every_scene_shows_its_target_a_colour_twin_and_nothing_of_the_target_s_group(scenes):
    for scene in scenes:
        assert 2 <= len(scene.concepts) <= 5
        target, twin, *more = scene.concepts
        assert target == scene.target
        assert any(twin in THINGS.colour_twins(hand, target) for hand in KNOWN_HANDS)
        assert THINGS.groups[target] not in THINGS.groups[[twin, *more]]
        assert {THINGS.splits[each] for each in scene.concepts} == {"base"}


def test_masks_are_disjoint_and_none_is_empty(scenes):
    for scene in scenes:
        assert scene.image.shape == (168, 168, 3)
        assert scene.masks.shape == (len(scene.concepts), 168, 168)
        assert scene.masks.sum(axis=0).max() == 1
        assert scene.masks.sum(axis=(1, 2)).min() > 20
        np.testing.assert_array_equal(scene.mask, scene.masks[0])


def test_some_things_are_partly_covered(scenes):
    """A covered thing's mask touches another's."""
    touching = [_grown(scene.masks[0]) & scene.masks[1:].any(axis=0) for scene in scenes]
    assert 0.1 < np.mean([each.any() for each in touching]) < 0.9


def _grown(mask: np.ndarray) -> np.ndarray:
    return np.logical_or.reduce([np.roll(mask, by, axis) for by in (-1, 1) for axis in (0, 1)])


def test_the_mask_is_where_the_thing_is():
    """A red square on a black photograph."""
    red = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    black = Image.new("RGB", (200, 200))
    montage = compose_montage([red], black, np.random.default_rng(1), 120, alike=0)
    colours = montage.image.astype(int)
    redder = colours[..., 0] - colours[..., 1] > 60
    assert np.mean(redder == montage.masks[0]) > 0.99


def test_an_episode_is_the_same_for_the_same_generator_state_and_another_for_another():
    first, again, other = (
        sample_episode(np.random.default_rng(seed), shots=2) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.query.image, again.query.image)
    np.testing.assert_array_equal(first.support[1].masks, again.support[1].masks)
    assert not np.array_equal(first.query.image, other.query.image)


def test_support_and_query_are_drawn_by_other_hands_on_other_photographs(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "uino_deploy.data.thing_episodes.compose_montage",
        lambda tiles, photograph, *rest, **options: (
            drawn.append((tiles[0], photograph))
            or compose_montage(tiles, photograph, *rest, **options)
        ),
    )
    for seed, query_hand in enumerate(("fluent", None) * 10):
        drawn.clear()
        episode = sample_episode(
            np.random.default_rng(seed), "held-out", query_hand=query_hand, shots=3, size=84
        )
        hands = [
            next(hand for hand in HANDS if tile is THINGS.tiles[hand][episode.concept])
            for tile, _ in drawn
        ]
        assert len(set(hands[:3])) == 1
        assert hands[0] in KNOWN_HANDS
        assert hands[3] != hands[0]
        assert hands[3] == (query_hand or hands[3])
        assert len({id(photograph) for _, photograph in drawn}) == 4


def test_the_target_is_absent_as_often_as_asked():
    rng = np.random.default_rng(0)
    episodes = [sample_episode(rng, absent=0.3, size=56) for _ in range(120)]
    absent = [episode for episode in episodes if not episode.present]
    assert 0.15 < len(absent) / 120 < 0.45
    for episode in episodes:
        assert episode.query.mask.any() == episode.present
        assert all(scene.mask.any() for scene in episode.support)
    for episode in absent:
        groups = THINGS.groups[list(episode.query.concepts)]
        assert THINGS.groups[episode.concept] not in groups
        assert len(episode.query.concepts) >= 1


def test_light_changes_brightness_and_tint_within_bounds():
    tables = np.array([Light.draw(np.random.default_rng(seed)).table() for seed in range(50)])
    assert tables.min() >= 0
    assert tables.max() <= 255
    middle = tables.reshape(50, 3, 256)[:, :, 128]
    assert 10 < middle.std(axis=0).mean() < 40
    assert np.ptp(middle, axis=1).mean() > 5
