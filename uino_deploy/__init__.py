"""Deployment of UINO-FSS few-shot segmentation: export, verify, build, run and measure."""

import os
import sys
from typing import TYPE_CHECKING

from uino_deploy.lazy import on_first_use

# A deployment tool sends nothing. Two runtimes tell their makers that they are used, and ask what
# they find when they are imported, which no module of ours does before this one.
# ONNX Runtime looks at a variable; OpenVINO, whose import alone reports to Google Analytics, has no
# switch but does without its reporter where that cannot be imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

if TYPE_CHECKING:
    from uino_deploy.config import UinoConfig as UinoConfig
    from uino_deploy.model.segmenter import UinoFSS as UinoFSS

__version__ = "0.1.0"
__all__ = ["UinoConfig", "UinoFSS", "__version__"]

# Importing the package needs no torch.
__getattr__ = on_first_use(__name__, "config.UinoConfig", "model.segmenter.UinoFSS")
