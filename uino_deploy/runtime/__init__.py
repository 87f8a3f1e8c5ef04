"""Run a bundle without torch, triton or onnx."""

from uino_deploy.bundle.support import Support
from uino_deploy.runtime.predictor import Encoded, Predictor, Result, label_map

__all__ = ["Encoded", "Predictor", "Result", "Support", "label_map"]
