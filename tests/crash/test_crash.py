"""The short form of the crash test, and what its checks refuse."""

import random
import shutil
import signal
import sys
from types import SimpleNamespace

import pytest

from tests.crash import __main__ as command_line
from tests.crash.campaign import Campaign, Fault, Known, Skipped
from tests.crash.commands import COMMANDS, make_inputs
from tests.export.conftest import bundle, exported, model  # noqa: F401 - fixtures
from uino_deploy.dependencies import is_importable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SEED = 20


@pytest.fixture(scope="module")
def campaigns(bundle, tmp_path_factory):  # noqa: F811
    """Return a campaign by the command's name, over the same inputs."""
    folder = tmp_path_factory.mktemp("crash")
    make_inputs(folder / "inputs", bundle.root, ())
    made = {c.name: Campaign(c, folder / "inputs", folder / c.name) for c in COMMANDS}
    enroll = made["enroll"]
    enroll.known()
    shutil.copyfile(enroll.output(enroll.folder / "finished"), folder / "inputs/a.safetensors")
    return made


def attempt(attack, campaign, *arguments):
    try:
        attack(campaign, random.Random(SEED), *arguments)
    except Skipped as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", ["enroll", "build"])
def test_a_killed_command_leaves_nothing_half_written(campaigns, name):
    """Always at the same change of the file system; the long run kills at any."""
    campaign = campaigns[name]
    if name == "build" and not is_importable("tensorrt_rtx"):
        pytest.skip("needs TensorRT-RTX")
    last = campaign.known().changes
    attempt(Campaign.kill, campaign, random.Random(SEED).randint(last // 2, last))
    assert campaign.done["kill at a change"] == 1


def test_a_signal_leaves_nothing_at_all(campaigns):
    attempt(Campaign.interrupt, campaigns["predict"], signal.SIGTERM)


@pytest.mark.parametrize("attack", [Campaign.disk_full, Campaign.read_only, Campaign.two_writers])
def test_an_output_without_room_or_with_two_writers(campaigns, attack):
    attempt(attack, campaigns["enroll"])


KNOWN = Known("old", "new", ["out", "out/a.safetensors", "tmp"], 1.0, 1, ((0, 1), (1, 2)))


def looked_at(campaigns, found):
    """Return the enroll campaign, its reader replaced."""
    campaign = campaigns["enroll"]
    command = COMMANDS[1].__class__(**{**vars(campaign.command), "read": lambda _path: found})
    return Campaign(command, campaign.inputs, campaign.folder / f"looked-{found}")


@pytest.mark.parametrize(
    ("found", "fault"),
    [("old", None), ("new", None), (None, "has gone"), ("half", "neither the old one nor the new")],
)
def test_only_the_old_output_or_the_new_one_is_whole(campaigns, tmp_path, found, fault):
    campaign = looked_at(campaigns, found)
    if fault is None:
        campaign.whole(tmp_path, KNOWN)
        return
    with pytest.raises(Fault, match=fault):
        campaign.whole(tmp_path, KNOWN)


def test_a_damaged_output_is_a_fault(campaigns, tmp_path):
    campaign = campaigns["enroll"]
    campaign.output(campaign.place(tmp_path / "place")).write_bytes(b"half of a support")
    with pytest.raises(Fault, match="the output is damaged: InputError"):
        campaign.whole(tmp_path / "place", KNOWN)


@pytest.mark.parametrize("said", ["Traceback (most recent call last):", "error: a\nerror: b"])
def test_a_failure_in_more_than_a_line_is_a_fault(campaigns, said):
    campaigns["enroll"].one_line("error: output a: Read-only file system; choose another output")
    with pytest.raises(Fault, match="does not fail in one line"):
        campaigns["enroll"].one_line(said)


def test_what_is_left_behind_is_a_fault(campaigns, tmp_path):
    campaign = campaigns["enroll"]
    place = campaign.place(tmp_path / "place")
    campaign.untouched(place)
    (place / "tmp/.uino-deploy-piece.tmp-0123456789abcdef").mkdir()
    with pytest.raises(Fault, match="too much"):
        campaign.untouched(place)


@pytest.mark.parametrize("minutes", [0, 0.001])
def test_a_command_that_was_not_attacked_is_no_pass(
    campaigns, tmp_path, monkeypatch, capsys, minutes
):
    """There was no time, or this machine can play none of the attacks."""

    def skips(_campaign, _rng):
        raise Skipped("nothing can be mounted here")

    inputs = campaigns["enroll"].inputs
    made = iter([campaigns["enroll"], campaigns["enroll"]])
    monkeypatch.setattr(command_line, "Campaign", lambda *_: next(made))
    monkeypatch.setattr(command_line, "make_inputs", lambda folder, *_: None)
    monkeypatch.setattr(command_line.shutil, "copyfile", lambda *_: None)
    monkeypatch.setitem(command_line.ATTACKS, "disk full", skips)
    enroll = [each for each in COMMANDS if each.name == "enroll"]
    campaigns["enroll"].done.clear()
    bad = command_line.attack(tmp_path, enroll, ["disk full"], minutes, SEED, inputs)
    assert bad == 1
    assert "FAILED: nothing was done to enroll (1 of 1)" in capsys.readouterr().out


def test_every_command_is_attacked_once_before_any_again_and_the_slow_ones_last():
    spent = {each.name: 0.0 for each in COMMANDS}
    order = []
    while not all(spent.values()):
        order.append(command_line.next_of(spent))
        spent[order[-1]] += 100.0 if order[-1] in command_line.SLOW else 1.0
    assert sorted(order) == sorted(spent)
    assert set(order[-3:]) == set(command_line.SLOW)
    assert command_line.next_of(spent) not in command_line.SLOW


def test_a_command_that_takes_too_long_is_called_so(tmp_path, monkeypatch):
    enroll = next(each for each in COMMANDS if each.name == "enroll")
    campaign = Campaign(enroll, tmp_path, tmp_path / "enroll")
    run = SimpleNamespace(wait=lambda: None, said=lambda: "encoding", began=0.0)
    monkeypatch.setattr(Campaign, "start", lambda *_, **__: run)
    with pytest.raises(Fault, match="the undisturbed run takes more than 600 s: encoding"):
        campaign.known()
