"""The plainly exported model in ONNX Runtime and in OpenVINO.

Importing this module needs neither torch nor onnx, so that only the runtime is measured. The graphs
are traced once, in the process that measures accuracy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uino_deploy.benchmarks.runners.runner import CannotRun, Found, Task
from uino_deploy.benchmarks.work import Shot, UInt8
from uino_deploy.dependencies import require
from uino_deploy.images import load_image, preprocess_image, preprocess_mask, upsample_logits

Array = npt.NDArray[Any]
Features = dict[str, Array]

PATCH = 14  # of every preset's encoder


class WholeOnnxRunner(ABC):
    """One graph for a query, run once for each class and each image."""

    def __init__(self, task: Task) -> None:
        self.task = task
        folder = Path(task.work) / f"whole-{task.image_size}"
        query, self._enroll_path = folder / "query.onnx", folder / "enroll.onnx"
        if not query.exists():
            from uino_deploy.benchmarks.runners.plain_export import export_whole

            export_whole(Path(task.model or ""), query, self._enroll_path, task.image_size)
        self._query = self.open(query)
        self._enroll: Any = None

    @abstractmethod
    def open(self, path: Path) -> Any:
        """Load a graph."""

    @abstractmethod
    def run(self, graph: Any, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run a graph on the arrays that it takes."""

    @abstractmethod
    def about(self) -> dict[str, str]:
        """Return the runtime's version and settings."""

    def enroll(self, shots: Sequence[Shot]) -> Features:
        """Enroll a class of one shot; its graph is loaded on the first call."""
        if len(shots) != 1:
            raise CannotRun("the plain graph was traced with one shot")
        if self._enroll is None:
            self._enroll = self.open(self._enroll_path)
        (image, mask), size = shots[0], self.task.image_size
        feeds = {
            "images": preprocess_image(image, size)[None, None],
            "masks": preprocess_mask(mask, size, PATCH)[None, None],
        }
        return self.run(self._enroll, feeds)

    def save(self, enrolled: Features, path: Path) -> None:
        """Write the features."""
        with path.open("wb") as file:
            np.savez(file, **enrolled)  # type: ignore[arg-type] # numpy's stub: a flag's name

    def load(self, path: Path) -> Features:
        """Read features."""
        with np.load(path) as arrays:
            return dict(arrays)

    def segment(
        self, queries: Sequence[Path | UInt8], classes: Sequence[Features]
    ) -> list[list[Found]]:
        """Segment; the encoder runs again for every class, since it is all one graph."""
        results = []
        for query in queries:
            image = load_image(query) if isinstance(query, Path) else query
            pixels = preprocess_image(image, self.task.image_size)[None]
            results.append([self._one(image, pixels, features) for features in classes])
        return results

    def stages(self, _query: Path, _enrolled: Features) -> dict[str, float]:
        """Return {}: one graph has no parts to time."""
        return {}

    def _one(self, image: UInt8, pixels: Array, features: Features) -> Found:
        logits = self.run(self._query, {"image": pixels, **features})["logits"][0, 0]
        mask = upsample_logits(logits, *image.shape[:2]) > 0
        return Found(mask.astype(np.uint8), logits)


class WholeOnnxRuntimeRunner(WholeOnnxRunner):
    """The plain graph in ONNX Runtime's CPU provider."""

    def open(self, path: Path) -> Any:
        """Load a graph."""
        require("cpu", "onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.task.threads
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, graph: Any, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run a graph."""
        names = [each.name for each in graph.get_outputs()]
        taken = {each.name: feeds[each.name] for each in graph.get_inputs()}
        return dict(zip(names, graph.run(names, taken), strict=True))

    def about(self) -> dict[str, str]:
        """Return ONNX Runtime's version."""
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__, "threads": str(self.task.threads)}


class WholeOpenVinoRunner(WholeOnnxRunner):
    """The plain graph in OpenVINO's CPU device, in the precision that the task names."""

    def open(self, path: Path) -> Any:
        """Load a graph."""
        require("openvino", "openvino")
        import openvino

        hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.task.threads,
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[self.task.precision],
        }
        return openvino.Core().compile_model(str(path), "CPU", hints)

    def run(self, graph: Any, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run a graph."""
        names = {name for port in graph.inputs for name in port.names}
        outputs = graph({name: feeds[name] for name in names & feeds.keys()})
        return {port.any_name: np.array(outputs[port]) for port in graph.outputs}

    def about(self) -> dict[str, str]:
        """Return OpenVINO's version and precision."""
        import openvino

        return {
            "openvino": openvino.__version__.partition("-")[0],
            "threads": str(self.task.threads),
        }
