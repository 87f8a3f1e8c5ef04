"""`make triton-check`: repositories on the core of Triton Inference Server, without a GPU.

The wheel nvidia-pytriton holds the server and its Python backend; its own layer is not used.
Stand-ins in Python take the places of the backends onnxruntime and tensorrt, so this proves the
configurations, the ensembles and the library of classes, not those backends, plans or plugins.

Paths below pytriton/tritonserver are those of the wheel nvidia-pytriton 0.7.0, whose server is
2.51; options are those of its `tritonserver --help`; what a misspelt key is told is protobuf's.

    python -m tests.serving.triton build/demo --environment .venv-triton -o build/triton.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.serving.triton.plans import with_plans
from uino_deploy.images import load_image, preprocess_image
from uino_deploy.runtime import Predictor, Support
from uino_deploy.serving.triton_repository import write_repository

HERE = Path(__file__).parent
CLOSE = 1e-3  # of logits of order 10: another release of ONNX Runtime computes them


def main() -> None:
    """Run the checks; leave with 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--environment", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        check = Check(given.demo, given.environment, Path(name))
        found = {
            "onnxruntime": check.repository("onnxruntime"),
            "tensorrt": check.repository("tensorrt", cuda_graphs=True),
            "misspelt": check.misspelt(),
        }
    text = json.dumps(found, indent=2)
    print(text)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text + "\n", "utf-8")


class Check:
    """The server, a folder of classes, and what the predictor finds with them."""

    def __init__(self, demo: Path, environment: Path, folder: Path) -> None:
        self.python = (environment / "bin" / "python").absolute()
        self.packages = next((environment / "lib").glob("python*/site-packages")).absolute()
        self.core = self.packages / "pytriton" / "tritonserver"
        self.folder = folder
        self.classes = folder / "classes"
        self.classes.mkdir()
        self.supports = sorted((demo / "supports").iterdir())[:3]
        for path in self.supports[:2]:
            shutil.copyfile(path, self.classes / path.name)
        self.bundle = with_plans(demo / "demo.uino", folder / "demo.uino")
        self.image = load_image(sorted((demo / "queries").iterdir())[0])
        self.backends = folder / "backends"
        shutil.copytree(self.core / "backends", self.backends)
        version = sysconfig.get_python_version()
        stub = self.core / "python_backend_stubs" / version / "triton_python_backend_stub"
        shutil.copy(stub, self.backends / "python")
        for name in ("onnxruntime", "tensorrt"):
            (self.backends / name).mkdir()
            shutil.copyfile(HERE / "standin.py", self.backends / name / "model.py")

    def repository(self, backend: str, **options: object) -> dict:
        """Serve a repository and compare its answers with the predictor's."""
        folder = self.folder / backend
        written = write_repository(self.bundle, self.classes, backend, folder, **options)
        if backend == "tensorrt":  # the stand-in's plans are graphs, which read their weights
            for path in self.bundle.root.glob("*.weights"):
                shutil.copyfile(path, folder / path.stem / "1" / path.name)
            for path in folder.glob("*/config.pbtxt"):  # it has no GPU
                text = path.read_text("utf-8").replace("KIND_GPU", "KIND_CPU")
                path.write_text(text, "utf-8")
        # The server's stub starts without PYTHONPATH.
        library = folder / "library" / "1" / "model.py"
        numpy = f"import sys\nsys.path.insert(0, {str(self.packages)!r})\nimport numpy as np\n"
        text = library.read_text("utf-8").replace("import numpy as np\n", numpy, 1)
        library.write_text(text, "utf-8")
        first, second, third = (path.stem for path in self.supports)
        with self.serving(folder) as address:
            missing = not_ready(address, written.models)
            assert written.models, "NOT RUN: the repository has no models"
            assert not missing, f"NOT RUN: the server does not serve {', '.join(missing)}"
            worst = self.compare(address, [first, second])
            refused = self.ask(address, [third, "../secret", "", first])[1]
            shutil.copyfile(self.supports[2], self.classes / f"{third}.safetensors")
            (self.classes / f"{first}.safetensors").write_bytes(b"damaged")
            worst = max(worst, self.compare(address, [second, third]))
            damaged = self.ask(address, [first])[1][first]
            metadata = refused["metadata"]
        (self.classes / f"{third}.safetensors").unlink()
        shutil.copyfile(self.supports[0], self.classes / f"{first}.safetensors")
        for name in (third, "../secret", ""):
            assert refused[name][0] == "404", refused
            assert f"no class {name!r}; enrolled: {first}, {second}" in refused[name][1], refused
        assert refused[first][0] == "200"
        assert "is damaged" in damaged[1], damaged
        assert [each["name"] for each in metadata["inputs"]] == ["image", "name"]
        said = {"unknown": refused[third], "damaged": damaged}
        return {"models": len(written.models), "largest_difference": worst, **said}

    def compare(self, address: str, names: list[str]) -> float:
        """Return the largest difference of logits between the server and the predictor."""
        predictor = Predictor(self.bundle, Predictor.load(self.bundle.root, threads=1).backend)
        made, _ = self.ask(address, names)
        worst = 0.0
        for name in names:
            support = Support.load(self.classes / f"{name}.safetensors")
            expected = predictor.predict(self.image, support)
            got = made[f"segment {name} logits"][0, 0]
            worst = max(worst, float(np.abs(got - expected.logits).max()))
            assert abs(float(made[f"segment {name} iou"][0, 0]) - expected.score) < CLOSE
        last = made[f"segment {names[0]} logits"]
        assert np.abs(made["query logits"] - last).max() < CLOSE, "the same from tensors"
        assert worst < CLOSE, worst
        return worst

    def ask(self, address: str, names: list[str]) -> tuple[dict, dict]:
        """Ask with tritonclient; return the arrays and what was said of each name."""
        known = next(name for name in [*names, *os.listdir(self.classes)] if self.known(name))
        support = Support.load(self.classes / f"{known.removesuffix('.safetensors')}.safetensors")
        image = preprocess_image(self.image, self.bundle.config.image_size)[None]
        inputs, outputs = self.folder / "inputs.npz", self.folder / "outputs.npz"
        np.savez(inputs, image=image, names=np.array(names), **support.features)
        command = [self.python, HERE / "client.py", address, inputs, outputs]
        subprocess.run([str(each) for each in command], check=True, timeout=120)
        made = dict(np.load(outputs))
        return made, json.loads(str(made.pop("said")))

    def known(self, name: str) -> bool:
        """Return whether a class's file can be read."""
        path = self.classes / f"{name.removesuffix('.safetensors')}.safetensors"
        return bool(name) and "/" not in name and path.is_file() and path.stat().st_size > 100

    def misspelt(self) -> str:
        """Return what the server's own parser says of a key that it does not know."""
        folder = self.folder / "misspelt"
        write_repository(self.bundle, self.classes, "onnxruntime", folder)
        path = folder / "prompt" / "config.pbtxt"
        path.write_text(path.read_text("utf-8").replace("instance_group", "instance_groups"))
        try:
            with self.serving(folder):
                raise AssertionError("the server takes a key that does not exist")
        except RuntimeError as error:
            log = str(error)
        found = re.search(r'has no field named "instance_groups"', log)
        assert found, log[-2000:]
        return found[0]

    @contextmanager
    def serving(self, repository: Path) -> Iterator[str]:
        """Run the server; yield its address once every model is ready."""
        ports = free_ports(3)
        command = [self.core / "bin" / "tritonserver", f"--model-repository={repository}"]
        command += [f"--backend-directory={self.backends}"]
        command += [f"--cache-directory={self.core / 'caches'}", "--exit-timeout-secs=2"]
        for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True):
            command += [f"--{kind}-address=127.0.0.1", f"--{kind}-port={port}"]
        libraries = [sysconfig.get_config_var("LIBDIR"), self.packages / "nvidia_pytriton.libs"]
        environment = os.environ | {
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "PYTHONPATH": str(self.packages),
            "OMP_NUM_THREADS": "1",
        }
        log = self.folder / "log"
        with log.open("w") as file:
            process = subprocess.Popen(
                list(map(str, command)), env=environment, stdout=file, stderr=file
            )
        try:
            until = time.monotonic() + 180
            while not is_ready(f"127.0.0.1:{ports[0]}", "health"):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(log.read_text(errors="replace"))
                time.sleep(0.5)
            yield f"127.0.0.1:{ports[0]}"
        except subprocess.CalledProcessError as error:
            if process.poll() is None:
                raise
            raise RuntimeError(f"the server died: {log.read_text()[-4000:]}") from error
        finally:
            process.terminate()
            process.wait(60)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    bound = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in bound]
    for each in bound:
        each.close()
    return ports


def not_ready(address: str, models: Sequence[str]) -> list[str]:
    """Return the models that the server does not serve."""
    return [name for name in models if not is_ready(address, f"models/{name}")]


def is_ready(address: str, what: str) -> bool:
    """Return whether a model, or the server's health, is ready: KServe v2's `GET v2/.../ready`."""
    try:
        with urllib.request.urlopen(f"http://{address}/v2/{what}/ready", timeout=5):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    main()
