"""Figures show the computed values."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.data.miniatures import make_folder, write_jpeg
from tests.model.test_sam_encoder import SMALL, filled, official_file
from uino_deploy.cli import cli
from uino_deploy.config import UinoConfig
from uino_deploy.data.episode_list import draw_list
from uino_deploy.data.folder import Folder
from uino_deploy.errors import InputError, OutputExists
from uino_deploy.evaluation.segmenters import model_segmenter
from uino_deploy.images import load_image, preprocess_image
from uino_deploy.model import save_checkpoint
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.studies import draw_grid, draw_similarity
from uino_deploy.studies.grid import qualitative_grid, switched_off
from uino_deploy.studies.similarity import (
    SelfSimilarity,
    propose_early_layer,
    self_similarity,
)
from uino_deploy.studies.tiles import TILE, _drawable, heat, mark, montage


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return UinoFSS(UinoConfig.from_preset("tiny")).eval()


@pytest.fixture(scope="module")
def place(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    save_checkpoint(model, folder / "tiny.safetensors", {})
    official_file(filled(SMALL, 3), folder / "sam.pth")
    write_jpeg(folder / "photo.jpg", 1)
    make_folder(folder / "mug")
    return folder


def run(*words):
    return CliRunner().invoke(cli, ["figure", *map(str, words)])


def test_heat_runs_from_dark_to_light():
    colours = heat(np.array([[0.0, 0.5, 1.0]], np.float32)).astype(int)
    assert colours[0, 0].tolist() == [68, 1, 84]
    assert colours[0, 2].tolist() == [253, 231, 37]
    assert colours[0].sum(axis=1).tolist() == sorted(colours[0].sum(axis=1))
    assert heat(np.ones((2, 2), np.float32)).shape == (2, 2, 3)


def test_tiles_hold_the_pictures():
    red = np.zeros((40, 80, 3), np.uint8)
    red[..., 0] = 255
    sheet = montage([[("a", red), ("b", red)], [("c", red)]])
    assert sheet.shape[1] > 2 * TILE
    assert ((sheet == (255, 0, 0)).all(axis=2)).sum() == 3 * TILE * TILE // 2
    crossed = mark(red, 0.5, 0.5)
    assert (crossed[20, 40] == 255).all()
    assert not np.array_equal(crossed, red)
    assert (red[..., 1:] == 0).all()


def test_each_layers_cosines_are_those_of_its_tokens(model):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    maps = self_similarity(image, 112, model.encoder)
    assert maps.layers.shape == (6, 64, 64)
    with torch.inference_mode():
        early, deep = model.encoder(torch.from_numpy(preprocess_image(image, 112))[None])
    for layer, tokens in [(2, early[0]), (3, deep[0, 0]), (6, deep[0, 3])]:
        unit = torch.nn.functional.normalize(tokens, dim=-1)
        np.testing.assert_allclose(maps.layers[layer - 1], (unit @ unit.T).numpy(), atol=1e-5)
    assert model.encoder.config.correlation_layers == (3, 4, 5, 6)  # the model is as it was


def test_the_layer_closest_to_the_teacher_is_proposed():
    rng = np.random.default_rng(1)
    teacher = rng.standard_normal((16, 16)).astype(np.float32)
    noise = rng.standard_normal((4, 16, 16)).astype(np.float32)
    shares = np.array([0.1, 0.5, 0.9, 0.3], np.float32)[:, None, None]
    maps = SelfSimilarity(shares * teacher + (1 - shares) * noise, teacher)
    early, closeness = propose_early_layer([maps, maps])
    assert early == 3
    assert closeness[2] > 0.95
    with pytest.raises(ValueError, match="teacher"):
        _ = SelfSimilarity(noise, None).closeness


def test_the_command_draws_and_proposes(place):
    path = place / "similarity.png"
    result = run(
        "similarity", place / "photo.jpg", "--checkpoint", place / "tiny.safetensors",
        "--sam-checkpoint", place / "sam.pth", "-o", path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "proposed early_layer: " in result.stdout
    assert load_image(path).shape[1] > 6 * TILE  # the image, SAM and six layers in two rows


def test_the_similarity_of_a_point_is_drawn(model, place):
    path = place / "plain.png"
    early = draw_similarity([place / "photo.jpg"], model, path, point=(0.2, 0.9))
    assert (early.proposed, early.closeness) == (None, [])
    assert load_image(path).shape[1] > 6 * TILE
    early = draw_similarity(
        [place / "photo.jpg"], model, path, sam_checkpoint=place / "sam.pth", force=True
    )
    assert early.closeness[early.proposed - 1] == max(early.closeness)
    with pytest.raises(OutputExists):
        draw_similarity([place / "photo.jpg"], model, path)
    with pytest.raises(InputError, match="outside the image"):
        draw_similarity([place / "photo.jpg"], model, place / "x.png", point=(2, 0))


def test_switched_off_parts_change_the_mask_and_not_the_model(model, place):
    dataset = Folder(place / "mug")
    (episode,) = draw_list(dataset, 1, 1, 0)
    shots = [(dataset.image(episode.support[0]), dataset.mask(episode.support[0], 0))]
    query = dataset.image(episode.query)
    before = model_segmenter(model)(shots, query)
    altered = switched_off(model)
    assert list(altered) == ["no MHCM", "no CE"]
    for other in altered.values():
        assert not np.array_equal(model_segmenter(other)(shots, query), before)
    np.testing.assert_array_equal(model_segmenter(model)(shots, query), before)
    assert switched_off(UinoFSS(UinoConfig.from_preset("tiny", "comp-star"))) == {}


def test_a_grid_has_a_row_for_each_episode_and_a_column_for_each_model(place):
    dataset = Folder(place / "mug")
    seen = []

    def everything(shots, query):
        seen.append((len(shots), query.shape))
        return np.ones(query.shape[:2], np.uint8)

    sheet = qualitative_grid(
        {"one": everything, "two": everything}, dataset, draw_list(dataset, 3, 2, 0)
    )
    assert seen == 6 * [(2, (40, 60, 3))]
    assert sheet.shape[1] > 4 * TILE
    assert sheet.shape[0] > 3 * TILE


def test_the_grid_command_draws_a_checkpoint_and_what_it_leans_on(place):
    path = place / "grid.png"
    result = run(
        "grid", place / "tiny.safetensors", "--ablate", "--dataset", "folder", "--data",
        place / "mug", "--count", 2, "-o", path, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    drawn = load_image(path)
    assert drawn.shape[1] > 5 * TILE
    columns = draw_grid(
        [place / "tiny.safetensors"], "folder", path, data=place / "mug", count=2, ablate=True,
        force=True,
    )  # fmt: skip
    assert columns == ["tiny.safetensors", "no MHCM", "no CE"]
    np.testing.assert_array_equal(load_image(path), drawn)
    with pytest.raises(InputError, match="single checkpoint"):
        draw_grid(2 * [place / "tiny.safetensors"], "demo", place / "y.png", ablate=True)


def test_labels_are_drawn_with_characters_that_every_font_has():
    assert _drawable("support: \u0541 A") == "support: U+0541 A"
