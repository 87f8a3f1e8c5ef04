"""Draws a training's batches in the same process: another one takes seconds to start."""

import pytest

from uino_deploy.training.batches import Batches


@pytest.fixture(autouse=True)
def drawn_in_this_process(monkeypatch):
    """Spare each test the process; fixtures of a module still have it, and must agree."""

    def drawn(self, first):
        return (self[number] for number in range(first, len(self)))

    monkeypatch.setattr(Batches, "drawn_ahead", drawn)
