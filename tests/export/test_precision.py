"""Precision in the exported module: parsed, applied, and not applied to float32 parameters."""

import pytest
import torch
from torch import nn

from uino_deploy.errors import InputError
from uino_deploy.export.precision import (
    Float32Convolution,
    edge_type,
    in_precision,
    parse_precision,
)
from uino_deploy.model.hypercorrelation import SelectiveScanBlock
from uino_deploy.pipeline import PIECES


def test_the_default_is_float32_everywhere():
    assert parse_precision([]) == dict.fromkeys(PIECES, "fp32")


def test_a_named_piece_wins_whatever_the_order():
    expected = {**dict.fromkeys(PIECES, "fp16"), "encoder": "fp32"}
    assert parse_precision(["fp16", "encoder=fp32"]) == expected
    assert parse_precision(["encoder=fp32", "fp16"]) == expected


@pytest.mark.parametrize("value", ["fp4", "encoder=", "=fp16", "head=fp16", "encoder=fp16=fp16"])
def test_an_unknown_precision_or_piece_is_named(value):
    with pytest.raises(InputError, match="--precision"):
        parse_precision([value])


def test_edges_are_never_bfloat16():
    assert edge_type("bf16") == edge_type("fp32") == torch.float32
    assert edge_type("fp16") == torch.float16


def test_the_scans_parameters_stay_float32():
    half = in_precision(SelectiveScanBlock(16, 4, 0), "fp16", 18)
    types = {name: tensor.dtype for name, tensor in half.named_parameters()}
    kept = {name for name, dtype in types.items() if dtype == torch.float32}
    assert kept == set(SelectiveScanBlock.float32_parameters)


def test_the_original_is_left_alone():
    module = nn.Linear(2, 2)
    in_precision(module, "fp16", 18)
    assert module.weight.dtype == torch.float32


def test_bfloat16_convolutions_run_in_float32_before_opset_22():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 4))
    low, high = (in_precision(module, "bf16", opset) for opset in (18, 22))
    assert isinstance(low[0], Float32Convolution)
    assert low[0].convolution.weight.dtype == torch.float32
    assert low[1].weight.dtype == torch.bfloat16
    assert isinstance(high[0], nn.Conv2d)
    assert high[0].weight.dtype == torch.bfloat16


def test_a_scans_convolution_is_an_operand_and_takes_the_pieces_type():
    block = in_precision(SelectiveScanBlock(16, 4, 0), "bf16", 18)
    assert block.conv.weight.dtype == torch.bfloat16
