"""The protocol's rows: held-out things by known and unseen hands, absent ones, real objects."""

import numpy as np
import pytest

from uino_deploy.data.episode_list import draw_list, read_list, write_list
from uino_deploy.data.objects import Objects, views
from uino_deploy.data.open import open_dataset
from uino_deploy.data.thing_dataset import ROWS, ThingDataset
from uino_deploy.data.things import Things
from uino_deploy.errors import InputError
from uino_deploy.evaluation import evaluate


@pytest.mark.parametrize("name", ROWS)
def test_an_episode_is_drawn_again_from_its_keys(name, tmp_path):
    dataset = open_dataset(name)
    episodes = draw_list(dataset, 3, 2, 7)
    write_list(tmp_path / "list", dataset, None, 2, 7, episodes)
    _, read = read_list(tmp_path / "list", ThingDataset(name))
    assert read == episodes
    images = [dataset.image(key) for each in episodes for key in (*each.support, each.query)]
    for index, key in enumerate(key for each in read for key in (*each.support, each.query)):
        np.testing.assert_array_equal(ThingDataset(name).image(key), images[index])


def test_every_concept_of_the_split_is_a_class_and_they_take_turns():
    dataset, things = open_dataset("things"), Things.load()
    assert dataset.classes == tuple(things.names[each] for each in things.concepts("held-out"))
    labels = [each.label for each in draw_list(dataset, len(dataset.classes), 1, 0)]
    assert sorted(labels) == list(range(len(dataset.classes)))
    assert len(open_dataset("things", split="train").classes) == len(things.concepts("base"))


def test_the_listed_images_of_a_class_show_it():
    dataset = open_dataset("things")
    for key in dataset.images(5)[:3]:
        assert dataset.mask(key, 5).any()
    with pytest.raises(InputError, match="another class"):
        dataset.mask(dataset.images(5)[0], 6)
    with pytest.raises(InputError, match="not a scene"):
        dataset.image("0/0/1/3")


def test_a_query_without_the_target_is_the_same_episodes():
    dataset = open_dataset("things-unseen-hand")
    episode = dataset.episode(2, 7, 2)
    absent = dataset.absent(episode, 2, 7)
    assert (absent.label, absent.support, absent.absent) == (episode.label, episode.support, True)
    assert dataset.mask(episode.query, episode.label).any()
    assert not dataset.mask(absent.query, episode.label).any()
    assert not np.array_equal(dataset.image(absent.query), dataset.image(episode.query))


def test_views_of_a_class_share_no_pixel_and_are_on_photographs_that_training_does_not_see():
    grounds = Things.load().photographs["held-out"]
    for number, view in enumerate(views()):
        left, top, right, bottom = view.box
        assert view.photograph in grounds
        assert 0 <= left < right <= grounds[view.photograph].width
        assert 0 <= top < bottom <= grounds[view.photograph].height
        for other in views()[:number]:
            if (other.label, other.photograph) == (view.label, view.photograph):
                apart = (
                    other.box[2] <= left
                    or right <= other.box[0]
                    or other.box[3] <= top
                    or bottom <= other.box[1]
                )
                assert apart, (view, other)


def test_a_view_shows_its_objects_and_something_else():
    dataset = Objects()
    for label in range(len(dataset.classes)):
        for key in dataset.images(label):
            mask = dataset.mask(key, label)
            assert mask.shape == dataset.image(key).shape[:2]
            assert 0.05 < mask.mean() < 0.95


def test_the_list_of_real_objects_ends_and_holds_no_episode_twice():
    dataset = Objects()
    most = dataset.most_episodes(1)
    episodes = draw_list(dataset, most, 1, 3)
    assert len({(each.support, each.query) for each in episodes}) == most
    assert all(each.query not in each.support for each in episodes)
    with pytest.raises(InputError, match=f"only {most} episodes"):
        dataset.episode(3, most, 1)
    with pytest.raises(InputError, match="no view"):
        dataset.image("99")


def test_evaluate_runs_each_real_episode_once(tmp_path):
    torch = pytest.importorskip("torch")
    from uino_deploy.config import UinoConfig
    from uino_deploy.model import save_checkpoint
    from uino_deploy.model.segmenter import UinoFSS

    torch.manual_seed(0)
    save_checkpoint(UinoFSS(UinoConfig.from_preset("tiny")).eval(), tmp_path / "m.safetensors", {})
    warnings = []
    report = evaluate(tmp_path / "m.safetensors", "objects", shots=5, warn=warnings.append)
    assert report.document["episodes"] == Objects().most_episodes(5) == 6
    assert any("only" in warning for warning in warnings)
