"""Faults that a model would hide, planted in an operator's right result."""

import numpy as np

# The kernels of the quick tests: one type and tiling of each operator.
QUICK = ("correlation4d-p3-fp16", "selective_scan2d-parallel-d32n4r2-fp16")


def scaled(out):
    """A factor, which normalisations in a model would swallow."""
    return out * np.asarray(1.01, out.dtype)


def reordered(out):
    """The scan's backward directions in each other's place, which a sum over them would swallow."""
    return np.ascontiguousarray(out[:, :, :, [0, 1, 3, 2]])


def one_shot(out):
    """The correlation's second shot dropped: the first in its place."""
    return np.ascontiguousarray(out[:, [0, 0]])


def faults_of(case):
    """Return functions that spoil a right result of a case."""
    return [scaled, one_shot if case.attributes else reordered]
