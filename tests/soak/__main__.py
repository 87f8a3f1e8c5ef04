"""The long run: `python -m tests.soak --predictions 20000 -o soak.json`; `make soak` calls it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from tests.soak.soak import BACKENDS, BYTES_PER_1000
from uino_deploy.benchmarks.machine import commit, describe_machine, versions
from uino_deploy.child import Child
from uino_deploy.dependencies import is_importable
from uino_deploy.files import atomic_file, sha256
from uino_deploy.selftest.setting import CHECKPOINT

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run each backend in its own process; leave with 1 where a fault was found or nothing ran."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--predictions", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=60.0, help="at most, for a backend")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="repeatable")
    parser.add_argument("--bundle", type=Path, help="the demo's bundle; exported if not given")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON; replaced")
    given = parser.parse_args()
    absent = [name for name in BACKENDS if not is_importable(name)]
    if missed := [name for name in given.backend or BACKENDS[:1] if name in absent]:
        sys.exit(f"FAILED: {', '.join(missed)} did not run: not installed")
    with tempfile.TemporaryDirectory() as folder:
        bundle = given.bundle or export(Path(folder, "demo.uino"))
        runs = {
            name: run(bundle, name, given.predictions, 60 * given.minutes)
            for name in given.backend or BACKENDS
            if name not in absent or print(f"SKIPPED {name}: it is not installed")
        }
    document = {
        "command": f"make soak PREDICTIONS={given.predictions}",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": msgspec.to_builtins(describe_machine()),
        "versions": versions(),
        "checkpoint_sha256": sha256(CHECKPOINT),
        "allowed_bytes_per_1000": BYTES_PER_1000,
        "runs": runs,
    }
    with atomic_file(given.output, force=True) as path:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if any(each["faults"] for each in runs.values()) else 0)


def export(path: Path) -> Path:
    """Export the bundled checkpoint."""
    from uino_deploy.export import export_bundle
    from uino_deploy.model.assembly import assemble_from_checkpoint

    export_bundle(assemble_from_checkpoint(CHECKPOINT).model, path)
    return path


def run(
    bundle: Path, backend: str, predictions: int, seconds: float = 600.0, plant: str = ""
) -> dict[str, Any]:
    """Run one backend in a process of its own, on one thread; print what was measured."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    request = {
        "bundle": str(bundle), "backend": backend, "predictions": predictions, "seconds": seconds,
        "plant": plant,
    }  # fmt: skip
    with Child("tests.soak.soak:soak", environment) as child:
        found: dict[str, Any] = child.ask(request)
    if len(found) == 2:
        print(f"{backend}: {found['faults'][0]}", flush=True)
        return found
    print(
        f"{backend}: {found['bytes_per_1000']:,} +- {found['standard_error']:,} bytes per 1,000 "
        f"predictions, {found['resident_last'] / 1e6:.0f} MB, handles {found['handles']}, threads "
        f"{found['threads']}, forked: {found['forked']}; {'; '.join(found['faults']) or 'PASSED'}",
        flush=True,
    )
    return found


if __name__ == "__main__":
    main()
