"""Run a bundle without torch, triton or onnx."""

from uino_deploy.runtime.predictor import Encoded, Predictor, Result, label_map
from uino_deploy.support import Support

__all__ = ["Encoded", "Predictor", "Result", "Support", "label_map"]
