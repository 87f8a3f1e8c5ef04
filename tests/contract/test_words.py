"""The words that our fakes and the inspector's reader use, looked up in TensorRT's own libraries.

Only where they are installed: `python -m tests.contract.environments words-11.4` (42 MiB each).
"""

import mmap
from importlib.util import find_spec
from pathlib import Path

import pytest
import tensorrt as trt

LIBRARY = find_spec("tensorrt_lean_libs")
pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(LIBRARY is None, reason="TensorRT's libraries are not installed"),
]

MAJOR = trt.__version__.partition(".")[0]
# In all versions: what tests/export and tests/runtime write.
WORDS = ["LayerType", "PluginV3", "CaskConvolution", "BFloat16", "Row major linear FP16 format"]
WORDS += ["myelinPluginV3Callback", "differs from one already registered"]
OF_A_MAJOR = {
    "10": ["Format/Datatype"],
    "11": ["Datatype", "I/O Tensors", "Format not available due to dynamic shapes"],
}


@pytest.fixture(scope="module")
def library():
    (folder,) = LIBRARY.submodule_search_locations
    (path,) = Path(folder).glob("libnvinfer_lean.so.*")
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@pytest.mark.parametrize("word", WORDS + OF_A_MAJOR[MAJOR])
def test_a_word_that_we_use_is_the_librarys(library, word):
    assert library.find(word.encode()) >= 0


def test_no_library_names_a_plugins_type(library):
    """So that only the parsed network says which operator a plugin layer is."""
    assert library.find(b"PluginType") < 0
