"""The long run: `python -m tests.crash --minutes 20 --seed 1`; `make crash` calls it."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.crash.campaign import ATTACKS, Campaign, Fault, Skipped
from tests.crash.commands import COMMANDS, make_inputs

# Come last in the first round: with little time as many commands as can be are attacked.
SLOW = ("export", "kernels build", "train --recipe")
# Kills are half of all.
_WEIGHTS = {"kill": 5}
_COLUMNS = ("kill by the clock", "kill at a change", "SIGTERM", "SIGINT", "SIGHUP", "disk full",
            "out of inodes", "read-only", "two writers")  # fmt: skip


def main() -> None:
    """Attack until the time is up; leave with 1 for a fault, or a command that was not attacked."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    names = [each.name for each in COMMANDS]
    parser.add_argument(
        "--command", action="append", choices=names, help="attack only this one; repeatable"
    )
    parser.add_argument("--attack", action="append", choices=list(ATTACKS))
    parser.add_argument("--bundle", type=Path, help="the demo's bundle; exported if not given")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is mounted is taken down
    chosen = [each for each in COMMANDS if not given.command or each.name in given.command]
    folder = Path(tempfile.mkdtemp(prefix="uino-crash-"))
    try:
        found = attack(
            folder, chosen, given.attack or [*ATTACKS], given.minutes, seed, given.bundle
        )
    finally:
        shutil.rmtree(folder)
    sys.exit(1 if found else 0)


def attack(
    folder: Path, chosen: list, attacks: list[str], minutes: float, seed: int, bundle: Path | None
) -> int:
    """Give each command the same share of the time; print each fault and the summary.

    Returns:
        The number of faults and of commands that were not attacked.
    """
    rng = random.Random(seed)
    inputs = folder / "inputs"
    exporting = Campaign(COMMANDS[0], inputs, folder / "export")
    inputs.mkdir()
    if bundle is None:
        make_inputs(inputs, inputs / "demo.uino", [each.name for each in chosen])
        exporting.known()
        shutil.copytree(exporting.output(exporting.folder / "finished"), inputs / "demo.uino")
    else:
        make_inputs(inputs, bundle, [each.name for each in chosen])
    support = Campaign(COMMANDS[1], inputs, folder / "enroll")
    support.known()
    shutil.copyfile(support.output(support.folder / "finished"), inputs / "a.safetensors")
    own = {"export": exporting, "enroll": support}
    campaigns = [own.get(c.name) or Campaign(c, inputs, folder / c.name) for c in chosen]
    spent = {each.command.name: 0.0 for each in campaigns}
    faults: Counter[str] = Counter()
    skipped: dict[str, str] = {}
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        name, began = next_of(spent), time.monotonic()
        campaign = next(each for each in campaigns if each.command.name == name)
        which = rng.choices(attacks, [_WEIGHTS.get(each, 1) for each in attacks])[0]
        try:
            ATTACKS[which](campaign, random.Random(rng.random()))
        except Skipped as reason:
            skipped[which] = str(reason)
        except Fault as fault:
            faults[name] += 1
            print(f"FAULT {name}: {fault}", flush=True)
        spent[name] += time.monotonic() - began
    _summarise(campaigns, faults, skipped)
    idle = [each.command.name for each in campaigns if not attacked(each)]
    if idle:
        print(
            f"FAILED: nothing was done to {', '.join(idle)} ({len(idle)} of {len(campaigns)}): "
            "give it more minutes"
        )
    return sum(faults.values()) + len(idle)


def next_of(spent: dict[str, float]) -> str:
    """Return the command that has had the least of the time so far, in seconds."""
    return min(spent, key=lambda name: (spent[name], name in SLOW))


def attacked(campaign: Campaign) -> int:
    """Return how many attacks were made: what ended before it was killed is none."""
    return sum(campaign.done[column] for column in _COLUMNS)


def _summarise(campaigns: list[Campaign], faults: Counter[str], skipped: dict[str, str]) -> None:
    rows = [["command", *_COLUMNS, "faults"]]
    for each in campaigns:
        counts = [str(each.done[column]) for column in _COLUMNS]
        rows.append([each.command.name, *counts, str(faults[each.command.name])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    for which, reason in skipped.items():
        print(f"SKIPPED {which}: {reason}")
    kills = sum(each.done[c] for each in campaigns for c in _COLUMNS[:2])
    print(f"{kills} kills, {sum(faults.values())} faults")


if __name__ == "__main__":
    main()
