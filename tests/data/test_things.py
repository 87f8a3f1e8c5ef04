"""The atlas of things: exact alpha, a clean split, and episodes that keep their promises."""

import hashlib
import io
import json
import zipfile
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from uino_deploy.data.montages import Light, Variation, compose_montage
from uino_deploy.data.thing_episodes import ThingScene, sample_episode
from uino_deploy.data.things import HANDS, KNOWN_HANDS, UNSEEN_HAND, Things, ThingSplit

THINGS = Things.load()
HELD_OUT_SCENES = "cc036390ced15f84e88b74047002b0beb6516e003e27bffe5662381ec0a36eee"


def sample_scenes(rng, count, split="base", **options) -> list[ThingScene]:
    return [sample_episode(rng, split, shots=0, **options).query for _ in range(count)]


@pytest.fixture(scope="module")
def scenes() -> list[ThingScene]:
    return sample_scenes(np.random.default_rng(5), 120)


@pytest.fixture(scope="module")
def atlas() -> zipfile.ZipFile:
    return zipfile.ZipFile(
        io.BytesIO(files("uino_deploy.data").joinpath("things.zip").read_bytes())
    )


def test_the_alpha_is_that_of_the_packages_pictures(atlas):
    sheets = json.loads(atlas.read("index.json"))["sheets"]
    assert {sheet["hand"] for sheet in sheets.values()} == set(HANDS)
    for name, sheet in sheets.items():
        image = Image.open(io.BytesIO(atlas.read(f"{name}.webp"))).convert("RGBA")
        alpha = hashlib.sha256(image.getchannel("A").tobytes()).hexdigest()
        assert alpha == sheet["alpha_sha256"]


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
    training = THINGS.concepts("training")
    assert set(base) | set(THINGS.concepts("extra")) == set(training)
    assert len(training) + len(held_out) == len(THINGS.names) == len(set(THINGS.names))
    assert not set(THINGS.groups[training]) & set(THINGS.groups[held_out])
    assert len(training) >= 900
    assert len(held_out) >= 100
    grounds = THINGS.photographs
    assert not grounds["base"].keys() & grounds["held-out"].keys()
    assert UNSEEN_HAND not in KNOWN_HANDS


def test_a_family_holds_what_is_of_one_kind():
    family = {name: THINGS.families[number] for number, name in enumerate(THINGS.names)}
    assert family["fox face"] == family["mouse face"] != family["automobile"]
    assert len(set(THINGS.families[THINGS.concepts("training")])) > 50


def test_training_has_three_hands_and_a_concept_at_least_two_of_them():
    drawn = [len(THINGS.hands(concept, KNOWN_HANDS)) for concept in THINGS.concepts("training")]
    assert set(drawn) == {2, 3}
    assert np.mean(drawn) > 2.5
    for hand in ("noto", "twemoji", UNSEEN_HAND):
        assert set(THINGS.concepts("held-out")) <= THINGS.tiles[hand].keys()


@pytest.mark.parametrize(
    "names", [("dog", "poodle"), ("taxi", "oncoming taxi"), ("tiger", "leopard")]
)
def test_near_duplicates_are_in_one_group(names):
    one, other = (THINGS.groups[THINGS.names.index(name)] for name in names)
    assert one == other


@pytest.mark.parametrize("hand", HANDS)
def test_colour_twins_share_more_colours_than_others_do_and_are_no_near_duplicates(hand):
    nearer, means = [], np.zeros((len(THINGS.names), 3))
    for concept, tile in THINGS.tiles[hand].items():
        means[concept] = _mean_colour(tile)
    split: ThingSplit = "base" if hand == "emojione" else "held-out"
    for concept in THINGS.concepts(split)[::4].tolist():
        if concept not in THINGS.tiles[hand]:
            continue
        twins = THINGS.colour_twins(hand, concept, split)
        others = THINGS.others(hand, concept, split)
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
        assert any(
            twin in THINGS.colour_twins(hand, target, "base")
            for hand in THINGS.hands(target, KNOWN_HANDS)
        )
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


def test_extra_concepts_train_only_and_mix_with_base_ones():
    scenes = sample_scenes(np.random.default_rng(2), 80, "training", size=84, varied=True)
    splits = [THINGS.splits[each] for scene in scenes for each in scene.concepts]
    assert set(splits) == {"base", "extra"}
    assert 0.2 < np.mean(np.array(splits) == "extra") < 0.6
    assert not set(THINGS.concepts("extra")) & THINGS.tiles[UNSEEN_HAND].keys()
    for seed in range(20):
        episode = sample_episode(np.random.default_rng(seed), "training", size=84, varied=True)
        assert THINGS.splits[episode.concept] in {"base", "extra"}
        assert episode.query.mask.any()
        assert all(scene.mask.any() for scene in episode.support)


def test_a_concept_s_class_is_its_place_in_the_split():
    training = THINGS.concepts("training")
    np.testing.assert_array_equal(
        THINGS.classes(training[::-1].tolist(), "training"), np.arange(len(training))[::-1]
    )
    for stranger in THINGS.concepts("held-out")[[0, -1]].tolist():
        with pytest.raises(ValueError, match="training concepts"):
            THINGS.classes([stranger], "training")


def test_varied_scenes_show_their_target_and_their_masks_are_disjoint():
    for scene in sample_scenes(np.random.default_rng(7), 60, "training", varied=True):
        assert scene.masks.sum(axis=0).max() == 1
        assert scene.masks.sum(axis=(1, 2)).min() > 20
        assert scene.concepts[0] == scene.target


@pytest.mark.parametrize("variation", [Variation(bend=1.0, outside=0.35), Variation(patches=1.0)])
def test_a_varied_mask_is_where_the_thing_is(variation):
    red = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    black = Image.new("RGB", (200, 200))
    less = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        montage = compose_montage([red], black, rng, 120, alike=0, variation=variation)
        colours = montage.image.astype(int)
        redder = colours[..., 0] - np.maximum(colours[..., 1], colours[..., 2]) > 60
        assert redder[montage.masks[0]].mean() > 0.97
        less.append((redder & ~montage.masks[0]).mean())
    assert np.median(less) < 0.01


def test_a_turned_hue_is_any_and_shared_by_the_target_and_its_twin():
    red = Image.new("RGBA", (64, 64), (200, 40, 40, 255))
    black, strongest = Image.new("RGB", (200, 200)), set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        montage = compose_montage([red, red], black, rng, 120, variation=Variation(hue=1.0))
        one, other = (np.median(montage.image[mask], axis=0) for mask in montage.masks)
        assert np.abs(one - other).max() < 12
        strongest.add(int(np.argmax(one)))
    assert strongest == {0, 1, 2}


def test_held_out_scenes_stay_as_they_are():
    """What training draws from may grow; every number reported of held-out things stays."""
    scenes = sample_scenes(np.random.default_rng(0), 50, "held-out")
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update(scene.image.tobytes() + scene.masks.tobytes())
    assert digest.hexdigest() == HELD_OUT_SCENES


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
