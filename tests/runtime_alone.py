"""Run a demo's bundle where only the runtime is installed; `make test-runtime` does.

Enrolls a class again, segments some of the demo's queries with it and with the demo's own support
files, and compares the masks with the ones that the demo left.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ABSENT = ("torch", "onnx", "triton", "onnxscript", "matplotlib", "jinja2", "sklearn")
QUERIES = 8


def uino_deploy(*arguments: object) -> dict:
    """Run a command with `--json` in this environment; return its document."""
    command = [sys.executable, "-m", "uino_deploy", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"FAILED: {' '.join(command)}: exit code {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def main(demo: Path) -> None:
    """Check one demo's folder; leave with a message where something is wrong."""
    present = [name for name in ABSENT if importlib.util.find_spec(name)]
    if present:
        sys.exit(f"FAILED: this environment has {', '.join(present)}")
    bundle = demo / "demo.uino"
    assert uino_deploy("doctor")["backends"]["onnxruntime"]["runs"]
    assert uino_deploy("inspect", bundle)["kind"] == "bundle"
    assert uino_deploy("verify", bundle)["passed"]
    assert uino_deploy("selftest", "--bundle", bundle)["passed"]
    agreed = [check_query(demo, query) for query in sorted(demo.glob("queries/*.png"))[:QUERIES]]
    print(f"{len(agreed)} queries, least agreement with the demo's masks {min(agreed):.5f}")  # noqa: T201 - a script
    if min(agreed) < 0.999:
        sys.exit("FAILED: the masks are not the demo's")
    print("PASSED")  # noqa: T201 - a script


def check_query(demo: Path, query: Path) -> float:
    """Enroll the query's class again, segment it, and return the share of equal pixels."""
    name = query.stem.split("_")[1]
    shot = demo / "shots" / f"{name}.png"
    mask = demo / "shots" / f"{name}_mask.png"
    with tempfile.TemporaryDirectory() as folder:
        support, found = Path(folder, "support.safetensors"), Path(folder, "found")
        uino_deploy(
            "enroll", demo / "demo.uino", "--shot", f"{shot}:{mask}", "--name", name, "-o", support
        )
        kept = uino_deploy("inspect", demo / "supports" / f"{name}.safetensors")
        assert uino_deploy("inspect", support)["fingerprint"] == kept["fingerprint"]
        uino_deploy(
            "predict", demo / "demo.uino", query, "--support", support, "-o", found,
            "--min-score", 0,
        )  # fmt: skip
        (written,) = (found / "masks" / name).glob("*.png")
        mine, theirs = (np.asarray(Image.open(p)) for p in (written, demo / "masks" / query.name))
    return float((mine == theirs).mean())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
