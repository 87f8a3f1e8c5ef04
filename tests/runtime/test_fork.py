"""A process that was forked from one that runs a bundle refuses to run it: it would hang."""

import os
import signal
import warnings

import numpy as np
import pytest

from uino_deploy.bundle import Bundle
from uino_deploy.dependencies import is_importable
from uino_deploy.errors import DependencyError
from uino_deploy.runtime.backends import open_backend

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_a_fork(work):
    """Run a function in a forked process; return what it returned or the error it raised."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads
        child = os.fork()
    if not child:
        signal.alarm(30)
        try:
            said = str(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_what_was_loaded_before_the_fork_is_refused_after_it(fake_bundle, name):
    if not is_importable(name):
        pytest.skip(f"needs {name}")
    bundle = Bundle.open(fake_bundle)
    session = open_backend(name).load(bundle, "prompt")
    feeds = {
        t.name: np.zeros([1 if isinstance(d, str) else d for d in t.shape])
        for t in session.piece.inputs
    }
    assert session.run(feeds)
    assert in_a_fork(lambda: session.run(feeds)).startswith(
        f"{DependencyError.__name__}: this process was forked"
    )
    assert session.run(feeds)


def test_openvino_is_not_started_twice_across_a_fork(fake_bundle):
    pytest.importorskip("openvino")
    bundle = Bundle.open(fake_bundle)
    open_backend("openvino").load(bundle, "prompt")
    said = in_a_fork(lambda: open_backend("openvino").load(bundle, "prompt"))
    assert "this process was forked" in said


def test_onnxruntime_loads_after_the_fork(fake_bundle):
    bundle = Bundle.open(fake_bundle)
    open_backend("onnxruntime").load(bundle, "prompt")
    said = in_a_fork(lambda: open_backend("onnxruntime").load(bundle, "prompt").piece.name)
    assert said == "prompt"
