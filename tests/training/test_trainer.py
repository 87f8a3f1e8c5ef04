"""The trainer: both stages learn, repeat exactly, and leave the model ready for inference."""

from dataclasses import replace

import pytest
import torch

from uino_deploy.training.batches import draw_batch
from uino_deploy.training.optimiser import Optimiser
from uino_deploy.training.recipe import RECIPES, Stage
from uino_deploy.training.trainer import Trainer

RECIPE = replace(RECIPES["demo"].shortened(2), episodes=2)


def ignore(_progress, _model):
    pass


def trained(seed=0):
    seen = []
    model = Trainer(RECIPE, seed, lambda progress, _model: seen.append(progress)).run()
    return model, seen


def test_a_training_goes_through_its_stages_and_repeats_exactly():
    model, seen = trained()
    again, seen_again = trained()
    stages = range(1, len(RECIPE.stages) + 1)
    assert [(p.stage, p.step, p.steps) for p in seen] == [(n, s, 2) for n in stages for s in (1, 2)]
    assert [p.loss for p in seen] == [p.loss for p in seen_again]
    for (name, one), other in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=name)
    assert not model.training


def test_another_seed_gives_another_model():
    first, other = trained(0)[0], trained(1)[0]
    assert not torch.equal(first.encoder.pos_embed, other.encoder.pos_embed)


@pytest.mark.parametrize("task", ["classification", "episodic"])
def test_a_few_steps_on_one_batch_lower_its_loss(task):
    trainer = Trainer(RECIPE, 0, ignore)
    model = trainer.model.train()
    batch = draw_batch(trainer.batches.pools, trainer.config, 0, 0, episodes=2)
    loss_of = trainer.classification_loss if task == "classification" else trainer.episodic_loss
    parts = dict(model.named_children()) | {"classifier": trainer.classifier}
    optimiser = Optimiser(parts, Stage("episodic", steps=100, muon=0.02, adam=1e-3))
    before = loss_of(batch).item()
    for _ in range(3):
        optimiser.step(loss_of(batch))
    assert loss_of(batch).item() < 0.97 * before


def test_every_parameter_of_the_model_is_trained():
    trainer = Trainer(RECIPE, 0, ignore)
    trainer.model.train()
    batch = draw_batch(trainer.batches.pools, trainer.config, 0, 0, episodes=2)
    trainer.episodic_loss(batch).backward()
    # The decoder has SAM's tokens and heads for three more masks, which are never asked for.
    unused = {"decoder.output_hypernetworks_mlps.1", "decoder.output_hypernetworks_mlps.2",
              "decoder.output_hypernetworks_mlps.3"}  # fmt: skip
    without = {n for n, p in trainer.model.named_parameters() if p.grad is None}
    assert {name.split(".layers.")[0] for name in without} == unused


def test_the_optimiser_gives_muon_the_matrices_of_blocks_and_adam_the_rest():
    trainer = Trainer(RECIPE, 0, ignore)
    optimiser = Optimiser(dict(trainer.model.named_children()), RECIPE.stages[-1])
    assert {p.ndim for p in optimiser.matrices} == {2}
    matrices = {id(p) for p in optimiser.matrices}
    assert id(trainer.model.encoder.blocks[0].mlp.fc1.weight) in matrices
    others = {id(p) for p in optimiser.others}
    assert id(trainer.model.prompt_generator.semantic.mlp.fc1.weight) in others
    assert not matrices & others
    assert len(matrices) + len(others) == len(list(trainer.model.parameters()))


def test_the_learning_rate_is_constant_then_falls_to_zero():
    stage = Stage("episodic", steps=100, muon=1, adam=1, constant=0.3)
    assert [stage.factor(step) for step in (0, 15, 30)] == [1, 1, 1]
    assert stage.factor(65) == pytest.approx(0.5)
    assert stage.factor(100) == pytest.approx(0)


def test_a_shortened_recipe_never_grows():
    demo = RECIPES["demo"]
    assert demo.shortened(10**9) == demo
    assert {stage.steps for stage in demo.shortened(7).stages} == {7}
