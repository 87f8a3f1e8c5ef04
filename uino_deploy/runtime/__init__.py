"""The runtime, which runs a bundle without torch, triton or onnx."""

from uino_deploy.bundle.support import Support
from uino_deploy.runtime.batch import segment_folder
from uino_deploy.runtime.predictor import Encoded, Predictor, Result, label_map
from uino_deploy.runtime.shots import read_negatives, read_shots

__all__ = [
    "Encoded",
    "Predictor",
    "Result",
    "Support",
    "label_map",
    "read_negatives",
    "read_shots",
    "segment_folder",
]
