"""Training from scratch: both stages learn, repeat exactly, and resume after a kill."""

from dataclasses import replace

import pytest
import torch

from uino_deploy.errors import OutputExists
from uino_deploy.model.checkpoint import load_checkpoint
from uino_deploy.training import train_recipe
from uino_deploy.training.batches import draw_batch
from uino_deploy.training.from_scratch import FromScratch, train_from_scratch
from uino_deploy.training.loop import TrainingLoop
from uino_deploy.training.optimiser import Optimiser
from uino_deploy.training.processes import ALONE
from uino_deploy.training.recipe import RECIPES, Stage
from uino_deploy.training.run_folder import STATE
from uino_deploy.training.schedule import Schedule

RECIPE = replace(RECIPES["demo"].shortened(2), episodes=2)


def assert_same_weights(one, other):
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], rtol=0, atol=0, msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nobody stopped, its batches drawn by another process: model and progress."""
    seen = []
    folder = tmp_path_factory.mktemp("whole")
    return train_from_scratch(RECIPE, 0, folder, observe=seen.append), seen


def test_a_training_goes_through_its_stages_and_repeats_exactly(whole, tmp_path):
    model, seen = whole
    seen_again = []
    again = train_from_scratch(RECIPE, 0, tmp_path, observe=seen_again.append)
    stages = range(len(RECIPE.stages))
    assert [(p.stage, p.step, p.steps) for p in seen] == [(n, s, 2) for n in stages for s in (1, 2)]
    assert [p.loss for p in seen] == [p.loss for p in seen_again]
    assert_same_weights(model, again)
    assert not model.training


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_killed_within_a_stage_and_resumed_equals_not_stopped(whole, tmp_path):
    steps = []

    def kill(progress):
        steps.append(progress)
        if len(steps) == 4:
            raise Killed

    schedules = [stage.schedule for stage in RECIPE.stages]
    with pytest.raises(Killed):
        TrainingLoop(FromScratch(RECIPE, 0), schedules, tmp_path, ALONE, save_every=1).run(kill)
    assert (tmp_path / STATE).exists()
    resumed = []
    model = train_from_scratch(RECIPE, 0, tmp_path, observe=resumed.append)
    assert [(p.stage, p.step) for p in resumed] == [(1, 2)]  # with Muon's momentum and AdamW's
    assert_same_weights(whole[0], model)


def test_another_seed_gives_another_model(whole, tmp_path):
    other = train_from_scratch(RECIPE, 1, tmp_path)
    assert not torch.equal(whole[0].encoder.pos_embed, other.encoder.pos_embed)


def test_the_public_function_writes_a_checkpoint_and_says_what_it_reached(tmp_path):
    path = tmp_path / "model.safetensors"
    state = torch.random.get_rng_state()
    result = train_recipe(RECIPE, path, seed=3, max_steps=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert result.checkpoint == path
    assert result.shortfalls is None  # it was not evaluated
    assert result.measured == {}
    assert result.provenance["command"] == "uino-deploy train --recipe demo --seed 3"
    assert load_checkpoint(path).config.preset == "tiny"
    with pytest.raises(OutputExists):
        train_recipe(RECIPE, path)


@pytest.mark.parametrize("objective", ["classification", "compact", "episodic"])
def test_a_few_steps_on_one_batch_lower_its_loss(objective):
    task = FromScratch(RECIPE, 0).train()
    batch = draw_batch(task.batches.pools, task.model.config, 0, 0, episodes=2)
    losses = {
        "classification": task.classification_loss,
        "compact": lambda batch: task.episodic_loss(batch, correlate=False),
        "episodic": task.episodic_loss,
    }
    loss = losses[objective]
    schedule = Schedule(100, learning_rate=1e-3, muon_rate=0.02)
    optimiser = Optimiser(dict(task.trained.named_parameters()), schedule)
    before = loss(batch).item()
    for step in range(3):
        optimiser.step(loss(batch), step)
    assert loss(batch).item() < 0.97 * before


def test_every_parameter_of_the_model_is_trained():
    task = FromScratch(RECIPE, 0).train()
    batch = draw_batch(task.batches.pools, task.model.config, 0, 0, episodes=2)
    task.episodic_loss(batch).backward()
    # The decoder has SAM's tokens and heads for three more masks, which are never asked for.
    unused = {"decoder.output_hypernetworks_mlps.1", "decoder.output_hypernetworks_mlps.2",
              "decoder.output_hypernetworks_mlps.3"}  # fmt: skip
    without = {n for n, p in task.model.named_parameters() if p.grad is None}
    assert {name.split(".layers.")[0] for name in without} == unused


def test_the_optimiser_gives_muon_the_matrices_of_blocks_and_adam_the_rest():
    model = FromScratch(RECIPE, 0).model
    optimiser = Optimiser(dict(model.named_parameters()), RECIPE.stages[-1].schedule)
    assert {p.ndim for p in optimiser.matrices} == {2}
    matrices = {id(p) for p in optimiser.matrices}
    assert id(model.encoder.blocks[0].mlp.fc1.weight) in matrices
    others = {id(p) for p in optimiser.others}
    assert id(model.prompt_generator.semantic.mlp.fc1.weight) in others
    assert not matrices & others
    assert len(matrices) + len(others) == len(list(model.parameters()))


def test_the_learning_rate_is_constant_then_falls_to_zero():
    schedule = Stage("episodic", steps=100, muon=1, adam=1, constant=0.3).schedule
    assert [schedule.factor(step) for step in (0, 15, 30)] == [1, 1, 1]
    assert schedule.factor(65) == pytest.approx(0.5)
    assert schedule.factor(100) == pytest.approx(0)


def test_a_shortened_recipe_never_grows():
    demo = RECIPES["demo"]
    assert demo.shortened(10**9) == demo
    assert {stage.steps for stage in demo.shortened(7).stages} == {7}


def test_the_recipe_of_things_trains_all_stages(tmp_path):
    recipe = replace(RECIPES["things"].shortened(1), episodes=2)
    seen = []
    model = train_from_scratch(recipe, 0, tmp_path, observe=seen.append)
    assert [progress.stage for progress in seen] == [0, 1, 2]
    assert (model.config.grid, model.config.pooled_grid) == (12, 6)
