"""The loop: a resumed run equals an uninterrupted one, and frozen parts stay unchanged."""

import csv

import pytest
import torch
from torch import nn

from uino_deploy.errors import CheckFailed, InputError, OutputExists
from uino_deploy.training.loop import Task, TrainingLoop
from uino_deploy.training.processes import ALONE, Processes
from uino_deploy.training.run_folder import (
    LOG,
    MODEL,
    SETTINGS,
    STATE,
    last_losses,
    prepared_folder,
)
from uino_deploy.training.schedule import Schedule

SCHEDULES = [Schedule(steps, learning_rate=0.05, warmup=2) for steps in (7, 6)]


class Regression(Task):
    """A frozen and a learning layer with a BatchNorm, on data drawn by the step's number."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 1, 1))
        super().__init__({"body": body})
        self.frozen = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).requires_grad_(False)
        self.blow_up_at = None

    def forward(self, stage, step):
        generator = torch.Generator().manual_seed(100 * stage + step)
        image = torch.randn(4, 3, 5, 5, generator=generator)
        if (stage, step) == self.blow_up_at:
            image = image * float("inf")
        return (
            (self.trained["body"](self.frozen(image)) - image.mean(dim=1, keepdim=True))
            .square()
            .mean()
        )


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def weights(task):
    return {name: tensor.clone() for name, tensor in task.trained.state_dict().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nobody stopped: its weights and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    task = Regression()
    TrainingLoop(task, SCHEDULES, folder, ALONE, save_every=3).run()
    return weights(task), folder


def test_the_loss_falls_and_the_log_has_every_step(whole):
    _, folder = whole
    rows = list(csv.DictReader((folder / LOG).read_text().splitlines()))
    assert [(int(row["stage"]), int(row["step"])) for row in rows] == [
        *((0, step) for step in range(1, 8)), *((1, step) for step in range(1, 7)),
    ]  # fmt: skip
    rates = [float(row["learning_rate"]) for row in rows[:7]]
    assert rates[0] == 0.025
    assert max(rates) == 0.05
    assert 0 < rates[-1] < 0.01
    first, last = float(rows[0]["loss"]), last_losses(folder, 2)[1]
    assert last < 0.8 * first


@pytest.mark.parametrize("after", [1, 3, 5, 7, 8, 12])
def test_killed_anywhere_and_resumed_equals_not_stopped(whole, tmp_path, after):
    expected, folder = whole
    steps = []

    def kill(progress):
        steps.append(progress)
        if len(steps) == after:
            raise Killed

    with pytest.raises(Killed):
        TrainingLoop(Regression(), SCHEDULES, tmp_path, ALONE, save_every=3).run(kill)
    # The process that goes on starts from other weights: only the saved state may count. Where
    # nothing was saved yet it starts as the first one did.
    task = Regression(seed=1 if (tmp_path / STATE).exists() else 0)
    task.frozen.load_state_dict(Regression().frozen.state_dict())
    TrainingLoop(task, SCHEDULES, tmp_path, ALONE, save_every=3).run(steps.append)
    for name, tensor in weights(task).items():
        assert torch.equal(tensor, expected[name]), name
    assert (tmp_path / LOG).read_text() == (folder / LOG).read_text()


def test_a_finished_training_has_nothing_left_to_do(whole):
    expected, folder = whole
    task = Regression(seed=1)
    steps = []
    TrainingLoop(task, SCHEDULES, folder, ALONE).run(steps.append)
    assert steps == []
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(task).items())


def test_what_is_frozen_stays_in_evaluation_mode_and_unchanged(tmp_path):
    task = Regression()
    before = {name: tensor.clone() for name, tensor in task.frozen.state_dict().items()}
    TrainingLoop(task, SCHEDULES, tmp_path, ALONE).run()
    assert all(torch.equal(tensor, before[n]) for n, tensor in task.frozen.state_dict().items())
    assert task.trained.training
    assert not task.frozen.training


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(tmp_path):
    task = Regression()
    task.blow_up_at = (0, 4)
    with pytest.raises(CheckFailed, match="stage 1, step 5 is not finite"):
        TrainingLoop(task, SCHEDULES, tmp_path, ALONE, save_every=2).run()
    assert all(parameter.isfinite().all() for parameter in task.trained.parameters())
    task = Regression()
    steps = []
    TrainingLoop(task, SCHEDULES, tmp_path, ALONE, save_every=2).run(steps.append)
    assert len(steps) == 13 - 4


def test_time_left_covers_the_stages_to_come(tmp_path):
    seen = []
    TrainingLoop(Regression(), SCHEDULES, tmp_path, ALONE).run(seen.append)
    assert [(p.stage, p.step, p.steps) for p in seen][6:8] == [(0, 7, 7), (1, 1, 6)]
    assert seen[0].seconds_left > 0
    assert seen[-1].seconds_left == 0


def test_damaged_states_are_refused(whole, tmp_path):
    (tmp_path / STATE).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="is damaged"):
        TrainingLoop(Regression(), SCHEDULES, tmp_path, ALONE).run()
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / STATE)
    with pytest.raises(InputError, match="no state of this version"):
        TrainingLoop(Regression(), SCHEDULES, tmp_path, ALONE).run()


def prepare(folder, settings, resume=False, force=False):
    with prepared_folder(folder, settings, resume, force, ALONE):
        pass


def test_a_folder_belongs_to_one_run(tmp_path):
    folder = tmp_path / "run"
    settings = {"lr": 0.1, "sizes": (1, 2)}
    prepare(folder, settings)
    with pytest.raises(OutputExists, match="--resume"):
        prepare(folder, settings)
    prepare(folder, settings, resume=True)
    with pytest.raises(InputError, match=r"started with lr 0\.1, not 0\.2"):
        prepare(folder, {**settings, "lr": 0.2}, resume=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"x")
    with pytest.raises(OutputExists, match="not the folder of a training run"):
        prepare(tmp_path / "photos", settings, force=True)


def test_a_new_run_keeps_neither_the_state_nor_the_model_of_the_old(tmp_path):
    prepare(tmp_path, {"lr": 0.1})
    for name in (STATE, MODEL):
        (tmp_path / name).write_bytes(b"old")
    prepare(tmp_path, {"lr": 0.2}, force=True)
    assert [each.name for each in tmp_path.iterdir()] == [SETTINGS]


def test_a_run_that_was_killed_before_it_began_is_none(tmp_path):
    (tmp_path / f".{SETTINGS}.tmp-0123456789abcdef").mkdir()
    prepare(tmp_path, {"lr": 0.1})
    assert (tmp_path / SETTINGS).exists()


def test_two_runs_never_share_a_folder(tmp_path):
    settings = {"lr": 0.1}
    with prepared_folder(tmp_path, settings, False, False, ALONE):
        (tmp_path / STATE).write_bytes(b"the first's")
        for force in (False, True):
            with pytest.raises(InputError, match="another command is training in"):
                prepare(tmp_path, settings, resume=not force, force=force)
        assert (tmp_path / STATE).read_bytes() == b"the first's"
    prepare(tmp_path, settings, resume=True)


def test_a_batch_must_divide_among_the_processes():
    processes = Processes(1, 2, torch.device("cpu"))
    assert processes.share([4, 5, 6, 7]) == [5, 7]
    with pytest.raises(InputError, match="cannot be shared by 2"):
        processes.share([1, 2, 3])
