"""A backend of Triton in Python that stands for its own of ONNX Runtime and TensorRT.

Laid as `model.py` into `backends/onnxruntime` and `backends/tensorrt`, it runs the model's file
with ONNX Runtime on the CPU: what is proved is the repository, not the backend.

The class, its methods and pb_utils are what the Python backend of server 2.51 calls and gives (the
wheel nvidia-pytriton 0.7.0 has it); `model_config` is the JSON of ModelConfig in the server's
model_config.proto, with its `default_model_filename`. `model.plan` and `model.onnx` are the usual
names that Triton's guide to model repositories gives for the two backends.
"""

import json
import os
import sys

# The server's stub starts without PYTHONPATH.
sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)

import onnxruntime  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402


class TritonPythonModel:
    """Runs one ONNX file."""

    @staticmethod
    def auto_complete_config(config):
        """Leave the configuration as it is: all of it must be in the repository."""
        return config

    def initialize(self, args):
        """Load the model's file, by the name that the backend would look for."""
        config = json.loads(args["model_config"])
        usual = {"tensorrt": "model.plan"}.get(config["backend"], "model.onnx")
        name = config.get("default_model_filename") or usual
        path = os.path.join(args["model_repository"], args["model_version"], name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        taken = {edge.name: edge.shape for edge in self.session.get_inputs()}
        for each in config["input"]:
            sizes = [size if isinstance(size, int) else -1 for size in taken[each["name"]]]
            if sizes != [int(size) for size in each["dims"]]:
                raise ValueError(f"{each['name']}: {sizes} in the file, {each['dims']} configured")

    def execute(self, requests):
        """Run each request."""
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """Run one request."""
        feeds = {
            each.name: pb_utils.get_input_tensor_by_name(request, each.name).as_numpy()
            for each in self.session.get_inputs()
        }
        names = [each.name for each in self.session.get_outputs()]
        try:
            made = self.session.run(names, feeds)
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse(list(map(pb_utils.Tensor, names, made)))
