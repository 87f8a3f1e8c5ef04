"""TensorRT's own ONNX parser on our nodes, with a plugin registered.

TensorRT-RTX brings the parser and runs without a GPU. It cannot build plugins: each question is
asked in a process that ends when the parser has asked for the plugin.
"""

import json
import subprocess
import sys

import onnx
import pytest

from tests.kernels.plugins.folders import (
    CORRELATION,
    EPILOGUE,
    MLP,
    PROLOGUE,
    SCAN,
    correlation_shapes,
    scan_shapes,
    volume_shapes,
)
from uino_deploy.kernels.correlation import onnx as correlation
from uino_deploy.kernels.epilogue import onnx as epilogue
from uino_deploy.kernels.identity import DOMAIN, VERSION
from uino_deploy.kernels.mlp import onnx as norm_mlp
from uino_deploy.kernels.plugins.names import PLUGIN
from uino_deploy.kernels.prologue import onnx as prologue
from uino_deploy.kernels.selective_scan import onnx as scan

pytest.importorskip("tensorrt_rtx")

FLOAT = onnx.TensorProto.FLOAT
GRID = {"height": 7, "width": 8, "pool": 3}
CASES = {
    "Correlation4d": (CORRELATION, GRID, correlation_shapes(1, 1, 2, 14, 16, (7, 8))),
    "ScanPrologue": (PROLOGUE, {"plane": 0}, volume_shapes(PROLOGUE)),
    "SelectiveScan2d": (SCAN, {}, scan_shapes()),
    "ScanEpilogue": (EPILOGUE, {"plane": 1}, volume_shapes(EPILOGUE, 1)),
    "NormMlp": (MLP, {}, volume_shapes(MLP)),
}
# What only the function reads.
MORE = {"ScanPrologue": {"channels": 32}}
FUNCTIONS = {
    "Correlation4d": lambda: correlation.portable_function(7, 8, 3, FLOAT, 18),
    "ScanPrologue": lambda: prologue.portable_function(FLOAT, 18),
    "SelectiveScan2d": lambda: scan.portable_function(FLOAT, 18),
    "ScanEpilogue": lambda: epilogue.portable_function(FLOAT, 18),
    "NormMlp": lambda: norm_mlp.portable_function(FLOAT, 18),
}


def model(name, portable, **changes):
    operator, attributes, shapes = CASES[name]
    inputs = [onnx.helper.make_tensor_value_info(k, FLOAT, v) for k, v in shapes.items()]
    outputs = [tensor.name for tensor in operator.outputs]
    results = [onnx.helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    # The attributes in another order than the plugin's: the parser must sort them out.
    given = dict(reversed((attributes | MORE.get(name, {}) | PLUGIN | changes).items()))
    node = onnx.helper.make_node(
        operator.name, list(shapes), outputs, name="node", domain=DOMAIN, **given
    )
    return onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", inputs, results),
        opset_imports=[onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(DOMAIN, VERSION)],
        functions=[FUNCTIONS[name]()] if portable else [],
        ir_version=10,
    )


_PROGRAM = """
import json, os, sys
import tensorrt_rtx as trt

sys.modules["tensorrt"] = trt
from uino_deploy.kernels.plugins import ipluginv3

def say(**what):
    print(json.dumps(what), flush=True)
    os._exit(0)

def asked(creator, name, fields, phase):
    plugin = create(creator, name, fields, phase)
    say(plugin=plugin.plugin_name, node=name, attributes=plugin.attributes)

create = ipluginv3.Creator.create_plugin
ipluginv3.Creator.create_plugin = asked
ipluginv3.register(None)
log = trt.Logger(trt.Logger.ERROR)
network = trt.Builder(log).create_network(0)
parser = trt.OnnxParser(network, log)
parsed = parser.parse(sys.stdin.buffer.read())
errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
say(parsed=parsed, layers=network.num_layers, errors=errors)
"""


def ask(made):
    """Return what the parser did: asked for a plugin, expanded the function, or gave up."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=made.SerializeToString(),
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize("portable", [True, False], ids=["with-function", "without-function"])
@pytest.mark.parametrize("name", CASES)
def test_the_parser_asks_for_the_plugin_with_its_attributes(name, portable):
    assert ask(model(name, portable)) == {
        "plugin": name,
        "node": "node",
        "attributes": CASES[name][1],
    }


def test_another_namespace_is_expanded_in_silence():
    """The reason why a build with plugins checks that the network has them."""
    answer = ask(model("Correlation4d", portable=True, plugin_namespace="uin0"))
    assert answer["parsed"]
    assert answer["layers"] > 10
    assert answer["errors"] == []
