"""Runs: counted, written, read, compared."""

import json

import numpy as np
import pytest

from tests.data.miniatures import make_folder, make_voc
from uino_deploy.data import draw_episode, load_pool
from uino_deploy.data.episode_list import draw_list
from uino_deploy.data.folder import Folder
from uino_deploy.data.pascal import Pascal
from uino_deploy.data.procedural import Procedural
from uino_deploy.errors import InputError
from uino_deploy.evaluation.episodes import run_episodes
from uino_deploy.evaluation.report import compare, run_document
from uino_deploy.evaluation.results import read_runs, write_results


def first_shot(shots, query):
    """Answer with the first support's mask."""
    return shots[0][1]


@pytest.fixture
def folder(tmp_path):
    return Folder(make_folder(tmp_path / "mug"))


def test_every_query_is_counted_at_its_own_size(folder):
    episodes = draw_list(folder, 4, 1, 0)
    steps = []
    run = run_episodes("x", first_shot, folder, episodes, lambda: steps.append(1))
    assert len(steps) == 4
    for episode, counts in zip(episodes, run.counts, strict=True):
        marked = folder.mask(episode.support[0], 0) == 1
        real = folder.mask(episode.query, 0) == 1
        assert counts.tolist() == [
            (marked & real).sum(), (marked | real).sum(),
            (~marked & ~real).sum(), (~marked | ~real).sum(),
        ]  # fmt: skip
    document = run_document(run)
    assert document["per_class"] == {"mug": {"iou": document["miou"], "episodes": 4}}
    assert document["miou_interval"][0] <= document["miou"] <= document["miou_interval"][1]


def test_the_episodes_of_the_demo_are_those_of_its_seed():
    pytest.importorskip("sklearn")
    seen = []

    def remember(shots, query):
        seen.append(query)
        return shots[0][1]

    dataset = Procedural("digits", "digits")
    run = run_episodes("x", remember, dataset, draw_list(dataset, 2, 1, seed=9))
    for index, image in enumerate(seen):
        episode = draw_episode(load_pool("digits"), 9, index)
        np.testing.assert_array_equal(image, episode.query.image)
        assert run.labels[index] == episode.label
    assert run.evaluation.episodes == 2


def test_void_is_background_in_a_support_and_nothing_in_a_query(tmp_path):
    dataset = Pascal(make_voc(tmp_path, per_class=2), 0)
    seen = []

    def remember(shots, query):
        seen.append(shots[0][1])
        return np.ones(query.shape[:2], np.uint8)

    episodes = draw_list(dataset, 5, 1, 0)
    run = run_episodes("all", remember, dataset, episodes)
    assert {value for mask in seen for value in np.unique(mask)} == {0, 1}
    for episode, counts in zip(episodes, run.counts, strict=True):
        truth = dataset.mask(episode.query, episode.label)
        assert counts[1] == (truth != 255).sum()  # the union of everything and the class


def test_a_file_gives_the_run_back(folder, tmp_path):
    run = run_episodes("x", first_shot, folder, draw_list(folder, 4, 1, 0))
    path = tmp_path / "results.json"
    write_results(path, {"miou": 1}, {None: run})
    assert json.loads(path.read_text())["miou"] == 1
    read = read_runs(path)[None]
    np.testing.assert_array_equal(read.counts, run.counts)
    assert run_document(read) == run_document(run)
    assert compare(read, run)["difference_interval"] == [0, 0]


def test_runs_of_other_episodes_are_not_compared(folder):
    one = run_episodes("one", first_shot, folder, draw_list(folder, 4, 1, 0))
    other = run_episodes("other", first_shot, folder, draw_list(folder, 4, 1, 1))
    with pytest.raises(InputError, match="other was not run on the same episodes"):
        compare(one, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": "2.0"}, "schema 2.0"),
        ({"labels": [7]}, "damaged"),
        ({"counts": [[1, 2, 3, 4]]}, "damaged"),
        ({"runs": 3}, "not a results file"),
    ],
)
def test_a_damaged_file_is_refused(folder, tmp_path, change, message):
    run = run_episodes("x", first_shot, folder, draw_list(folder, 2, 1, 0))
    path = tmp_path / "results.json"
    write_results(path, {}, {None: run})
    document = json.loads(path.read_text())
    for key, value in change.items():
        (document if key in document else document["runs"][0])[key] = value
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=message):
        read_runs(path)


def test_a_mask_of_another_size_is_refused(tmp_path):
    from PIL import Image

    root = make_folder(tmp_path / "mug", 2)
    mask = np.zeros((10, 10), np.uint8)
    mask[2:5] = 1
    Image.fromarray(mask).save(root / "masks/000.png")
    dataset = Folder(root)
    with pytest.raises(InputError, match=r"its mask \(10, 10\)"):
        run_episodes("x", first_shot, dataset, draw_list(dataset, 1, 1, 0))
