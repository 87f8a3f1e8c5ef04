"""Faults that a model would hide, planted in an operator's right result."""

import numpy as np

from uino_deploy.selftest.cases import CORRELATION

# The kernels of the quick tests: one type and tiling of each operator.
QUICK = (
    "correlation4d-p3-fp16",
    "scan_prologue-query-d16p16-fp16",
    "selective_scan2d-parallel-d16n4r2p16-fp16",
    "scan_epilogue-query-d16-fp16",
    "norm_mlp-d16f32-fp16",
)


def scaled(out):
    """A factor, which normalisations in a model would swallow."""
    return out * np.asarray(1.01, out.dtype)


def exchanged(out):
    """Each plane, or each shot's volume, in another's place."""
    return np.roll(out, 1, axis=0)


def one_shot(out):
    """The correlation's second shot dropped: the first in its place."""
    return np.ascontiguousarray(out[:, [0, 0]])


def faults_of(case):
    """Return functions that spoil a right result of a case."""
    return [scaled, one_shot if case.operator is CORRELATION else exchanged]
