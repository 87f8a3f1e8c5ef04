"""A run's folder that is damaged is refused in a line."""

import os

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402 - needs torch

from uino_deploy.errors import InputError  # noqa: E402
from uino_deploy.training.run_folder import (  # noqa: E402
    FORMAT,
    LOG,
    SETTINGS,
    STATE,
    VERSION,
    State,
    _check_settings,
    cut_log,
    last_losses,
    load_state,
    save_state,
)


def test_a_state_survives_its_file(tmp_path):
    save_state(tmp_path, State(1, 20, {"w": torch.ones(2)}, {"m": torch.zeros(3)}))
    state = load_state(tmp_path)
    assert (state.stage, state.step) == (1, 20)
    assert torch.equal(state.model["w"], torch.ones(2))


@pytest.mark.parametrize("step", ["", "x", "-1", "1" * 5000, "\u0661", None])
def test_a_state_without_its_place_is_refused(tmp_path, step):
    metadata = {"format": FORMAT, "version": VERSION, "stage": "0", "step": step}
    kept = {key: value for key, value in metadata.items() if value is not None}
    save_file({"model.w": torch.ones(2)}, tmp_path / STATE, kept)
    with pytest.raises(InputError, match="no stage and step"):
        load_state(tmp_path)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a": "\xff"}', b"1" * 5000, b"[1]", b""])
def test_damaged_settings_are_refused(tmp_path, text):
    (tmp_path / SETTINGS).write_bytes(text)
    with pytest.raises(InputError, match="is damaged") as refused:
        _check_settings(tmp_path / SETTINGS, {"a": 1})
    assert "\n" not in str(refused.value)


def test_rows_of_a_log_that_are_none_are_dropped(tmp_path):
    rows = "stage,step,loss,learning_rate\n0,1,0.5,0.1\nx,y,0.5,0.1\n0,9,0.5,0.1\n"
    (tmp_path / LOG).write_text(rows + "1" * 5000 + ",2,0.5,0.1\n")
    cut_log(tmp_path, 0, 5)
    kept = (tmp_path / LOG).read_text().splitlines()
    assert kept == ["stage,step,loss,learning_rate,validation_miou", "0,1,0.5,0.1"]
    (tmp_path / LOG).write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match="is damaged"):
        cut_log(tmp_path, 0, 5)


def test_a_pipe_for_a_state_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / STATE)
    with pytest.raises(InputError, match="it is a named pipe"):
        load_state(tmp_path)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("0,1,{.5,0.1", "is damaged"),
        ("0,1", "is damaged"),
        ("", "is damaged"),
        ("1,1,0.5,0.1", "no step of stage 0"),
    ],
)
def test_a_log_without_the_losses_is_refused(tmp_path, rows, words):
    (tmp_path / LOG).write_text(f"stage,step,loss,learning_rate\n{rows}\n")
    with pytest.raises(InputError, match=words):
        last_losses(tmp_path, 1)
