"""A worker with an invented runner: its answers, and that every result is checked."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from uino_deploy.benchmarks import worker as module
from uino_deploy.benchmarks.record import MAIN, Case
from uino_deploy.benchmarks.runners.runner import CannotRun, Found, Task
from uino_deploy.benchmarks.work import prepare, read
from uino_deploy.benchmarks.worker import Answers, Worker
from uino_deploy.data.photographs import ellipse
from uino_deploy.errors import CheckFailed, DependencyError, InputError

TEN = Case(classes=10)


class MadeUp:
    """Answers the same for the same query, until it is told to hurry."""

    hurry = False

    def about(self):
        return {"made up": "1.0"}

    def enroll(self, shots):
        if len(shots) > 1:
            raise CannotRun("one shot only")
        return float(shots[0][1].mean())

    def save(self, enrolled, path):
        path.write_text(str(enrolled))

    def load(self, path):
        return float(path.read_text())

    def segment(self, queries, classes):
        return [[self._one(query, support) for support in classes] for query in queries]

    def _one(self, query, support):
        number = 0.0 if self.hurry else float(Path(query).stem) + support
        logits = np.full((4, 4), number + 1, np.float32)
        return Found((logits > 0).astype(np.uint8), logits)

    def stages(self, query, enrolled):
        return {"all": 0.001}


@pytest.fixture
def task(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        pixels = np.full((20, 30, 3), 80 * number, np.uint8)
        Image.fromarray(pixels).save(images / f"photograph {number}.png")
    (tmp_path / "work" / "scratch").mkdir(parents=True)
    prepare(tmp_path / "work", images, [MAIN, TEN, Case(shots=2)], 0)
    return Task(
        runner="made up",
        precision="fp32",
        threads=1,
        image_size=112,
        work=str(tmp_path / "work"),
        scratch=str(tmp_path / "work" / "scratch"),
    )


@pytest.fixture
def made_up(task, monkeypatch):
    monkeypatch.setattr(module, "make_runner", lambda _task: MadeUp())
    return Worker(task)


def measure(worker: Worker, case: Case = MAIN, iterations: int = 4):
    return worker.measure(msgspec.to_builtins(case), 1, None, iterations, case == MAIN)


def test_work_has_neutral_names_and_is_read_back(task):
    work = read(Path(task.work))
    assert work.photographs == ["0.png", "1.png", "2.png"]
    assert len(set(work.images)) == 3
    batch = work.queries(Path(task.work), Case(batch=4), first=1)
    assert [path.name for path in batch] == ["1.png", "2.png", "0.png", "1.png"]
    shots = work.shots(Path(task.work), 0, 2)
    assert [image.max() for image, _ in shots] == [80, 160], "never the first query itself"


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image"):
        prepare(tmp_path, tmp_path / "empty", [], 0)


@pytest.mark.parametrize("number", range(40))
def test_ellipses_are_neither_empty_nor_full(number):
    mask = ellipse(60, 90, number)
    assert mask.dtype == np.uint8
    assert 0.05 < mask.mean() < 0.4
    assert (mask == ellipse(60, 90, number)).all()


def test_every_case_is_judged_or_noted(made_up, task):
    notes = made_up.judge()["notes"]
    assert notes == {"classes 1, shots 2, batch 1": "one shot only"}
    with np.load(Path(task.scratch) / module.OUTPUTS) as outputs:
        names = {name for name in outputs if name.endswith("logits")}
        assert names == {f"{MAIN}, query {i}, logits" for i in range(3)} | {
            f"{TEN}, query 0, logits"
        }
        assert outputs[f"{TEN}, query 0, logits"].shape == (10, 4, 4)


def test_turns_go_round_the_photographs(made_up):
    made_up.judge()
    answer = measure(made_up, iterations=5)
    assert len(answer["samples"]) == 5
    assert answer["stages"] == {"all": [0.001] * 5}
    assert measure(made_up, TEN)["stages"] == {}


def test_a_speed_of_something_else_is_refused(made_up):
    made_up.judge()
    made_up.runner.hurry = True
    with pytest.raises(CheckFailed, match="the timed result differs"):
        measure(made_up)


def test_a_turn_lasts_its_seconds(made_up):
    made_up.judge()
    answer = made_up.measure(msgspec.to_builtins(MAIN), 0, 0.02, None, False)
    assert sum(answer["samples"]) <= 0.5
    assert len(answer["samples"]) > 1


def answers(task: Task, *requests: dict) -> list[dict]:
    answer = Answers()
    return [answer(each, lambda _note: None) for each in (msgspec.to_builtins(task), *requests)]


def test_a_worker_answers_and_goes_on_after_an_error(task, monkeypatch):
    monkeypatch.setattr(module, "make_runner", lambda _task: MadeUp())
    about, wrong, memory = answers(task, {"do": "first"}, {"do": "memory"})
    assert about == {"about": {"made up": "1.0"}}
    assert "FileNotFoundError" in wrong["error"]
    assert memory["resident"] > 0


def test_what_is_missing_here_is_a_refusal(task, monkeypatch):
    def missing(_task):
        raise DependencyError("made up is not installed", "pip install it")

    monkeypatch.setattr(module, "make_runner", missing)
    (answer,) = answers(task)
    assert answer == {"error": "made up is not installed; pip install it", "refused": True}
