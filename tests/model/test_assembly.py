"""Assembling a model: the source of each part, the random parts, and repeatability."""

import pytest

torch = pytest.importorskip("torch")

from uino_deploy.config import UinoConfig  # noqa: E402 - after torch, which may be missing
from uino_deploy.errors import CheckpointError  # noqa: E402
from uino_deploy.files import sha256  # noqa: E402
from uino_deploy.model import save_checkpoint  # noqa: E402
from uino_deploy.model.assembly import assemble_from_checkpoint, assemble_from_parts  # noqa: E402

CONFIG = UinoConfig.from_preset("tiny")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a checkpoint of ours and the encoder's and the decoder's in their official layouts."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = assemble_from_parts(CONFIG, seed=5).model
    save_checkpoint(model, folder / "own.safetensors", {})
    save_checkpoint(model, folder / "partly.safetensors", {"untrained": ["decoder"]})
    torch.save(model.encoder.state_dict(), folder / "dinov2.pth")
    decoder = {
        f"{'prompt_encoder' if name.startswith('pe_layer.') else 'mask_decoder'}.{name}": tensor
        for name, tensor in model.decoder.state_dict().items()
    }
    torch.save(decoder, folder / "sam.pth")
    return folder, model


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_without_checkpoints_all_is_random_and_seeded():
    before = torch.get_rng_state()
    first, again = (assemble_from_parts(CONFIG, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first.model, again.model)
    assert not same(first.model, assemble_from_parts(CONFIG, seed=2).model)
    assert first.untrained == ("encoder", "adapter", "prompt_generator", "decoder")
    assert (first.sources, first.seed) == ((), 1)
    assert not first.model.training


def test_published_parts_are_loaded_and_the_rest_is_named(files):
    folder, model = files
    made = assemble_from_parts(CONFIG, folder / "dinov2.pth", folder / "sam.pth", seed=9)
    assert same(made.model.encoder, model.encoder)
    assert same(made.model.decoder, model.decoder)
    assert not same(made.model.prompt_generator, model.prompt_generator)
    assert made.untrained == ("adapter", "prompt_generator")
    assert [(s.role, s.name, s.trained) for s in made.sources] == [
        ("encoder", "dinov2.pth", True),
        ("decoder", "sam.pth", True),
    ]
    assert made.sources[0].sha256 == sha256(folder / "dinov2.pth")
    only_sam = assemble_from_parts(CONFIG, sam_checkpoint=folder / "sam.pth")
    assert only_sam.untrained == ("encoder", "adapter", "prompt_generator")


def test_our_checkpoint(files):
    folder, model = files
    made = assemble_from_checkpoint(folder / "own.safetensors")
    assert same(made.model, model)
    assert (made.untrained, made.seed) == ((), None)
    assert made.sources[0].trained
    assert made.model.config == CONFIG


def test_our_checkpoint_at_another_size(files):
    folder, _ = files
    made = assemble_from_checkpoint(folder / "own.safetensors", image_size=140)
    assert made.model.config.image_size == 140
    image = torch.zeros(1, 3, 140, 140)
    logits, _ = made.model(image, image[:, None], torch.full((1, 1, 100), 0.5))
    assert logits.shape == (1, 1, 40, 40)


def test_what_a_checkpoint_says_is_untrained_stays_untrained(files):
    folder, _ = files
    made = assemble_from_checkpoint(folder / "partly.safetensors")
    assert made.untrained == ("decoder",)
    assert not made.sources[0].trained


def test_swapped_files_are_refused(files):
    folder, _ = files
    with pytest.raises(CheckpointError, match="not DINOv2"):
        assemble_from_parts(CONFIG, encoder_checkpoint=folder / "sam.pth")
    with pytest.raises(CheckpointError):
        assemble_from_parts(CONFIG, sam_checkpoint=folder / "dinov2.pth")
    with pytest.raises(CheckpointError, match="not a uino-deploy checkpoint"):
        assemble_from_checkpoint(folder / "dinov2.pth")
