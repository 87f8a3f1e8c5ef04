"""NumPy versions that corrupt the bindings' arrays: known, and avoided."""

import numpy as np
import pytest
import tensorrt as trt

pytestmark = pytest.mark.contract

VERSION = tuple(map(int, trt.__version__.split(".")[:2]))
NUMPY = tuple(map(int, np.__version__.split(".")[:2]))
BROKEN = VERSION <= (10, 13) and NUMPY >= (2, 0)


def field(*values):
    keep = np.array(values, np.int32)
    return keep, trt.PluginField("n", keep, trt.PluginFieldType.INT32)


def test_a_field_of_one_element_is_right_everywhere():
    _keep, one = field(37)
    assert int(one.data.flat[0]) == 37


def test_longer_fields_are_wrong_where_we_say_so():
    _keep, three = field(1, 2, 3)
    got = three.data.tolist()
    assert got == ([1, 1, 1] if BROKEN else [1, 2, 3])
