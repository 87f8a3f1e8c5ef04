"""The pipeline's edges are those of the exported pieces, in every variant."""

import pytest
import torch

from tests.export.conftest import random_model
from uino_deploy.config import VARIANTS, UinoConfig
from uino_deploy.export.compose import describe_query
from uino_deploy.export.pieces import describe_pieces, exportable_pieces
from uino_deploy.export.precision import parse_precision
from uino_deploy.pipeline import CLASS, CLASS_AXIS, PIECES, QUERY, producer, variant_edges

SIZES = {"batch": 2, "shots": 3}


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_piece_takes_and_gives_its_edges(variant):
    model = random_model(variant)
    pieces = exportable_pieces(model, parse_precision([]), 18)
    assert list(pieces) == list(PIECES)
    for name, edges in variant_edges(model.config).items():
        piece, module = pieces[name]
        assert tuple(edge.name for edge in piece.inputs) == edges.inputs
        assert tuple(edge.name for edge in piece.outputs) == edges.outputs
        with torch.inference_mode():
            outputs = module(*(torch.zeros(sizes(edge)) for edge in piece.inputs))
        assert [list(output.shape) for output in outputs] == [sizes(e) for e in piece.outputs]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("route", [CLASS, QUERY], ids=["class", "query"])
def test_a_piece_takes_what_the_pieces_before_it_give(variant, route):
    """Names, types and shapes: an fp16 encoder's tensors are float16 for every piece."""
    config = UinoConfig.from_preset("tiny", variant)
    pieces = describe_pieces(config, parse_precision(["encoder=fp16"]))
    known = dict.fromkeys(route.ends.inputs)
    for name in route.pieces:
        for edge in pieces[name].inputs:
            given = known[route.name(edge.name)]
            if given is not None:
                assert edge.dtype == given.dtype
                assert sizes(edge)[1:] == sizes(given)[1:]
        known |= {route.name(edge.name): edge for edge in pieces[name].outputs}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_query_takes_what_a_class_gives(variant):
    config = UinoConfig.from_preset("tiny", variant)
    pieces = describe_pieces(config, parse_precision([]))
    given = {CLASS.name(e.name): e for name in CLASS.pieces for e in pieces[name].outputs}
    for edge in describe_query(pieces).inputs:
        if edge.name != "image":
            assert producer(edge.name) in CLASS.pieces
            axis = [1] if edge.name in CLASS_AXIS else []
            assert sizes(edge)[len(axis) + 1 :] == sizes(given[edge.name])[1:]
            assert sizes(edge)[: len(axis)] == axis


def test_a_variant_leaves_out_what_it_does_not_use():
    edges = variant_edges(UinoConfig.from_preset("tiny", "comp"))
    assert edges["prompt"] == (("query_deep", "prototypes"), ("dense",))
    assert edges["support"] == (("deep", "mask"), ("prototypes", "sparse"))


def test_what_runs_for_an_image_and_what_for_each_class():
    assert QUERY.split({"image"}) == (("encoder", "adapter"), ("prompt", "decoder"))
    assert CLASS.split({"support_image"}) == (("encoder",), ("support",))


def test_what_follows_a_piece():
    after = {name: QUERY.after(name) for name in PIECES}
    assert after == {
        "encoder": ("adapter", "prompt", "decoder"),
        "adapter": ("decoder",),
        "support": ("prompt", "decoder"),
        "prompt": ("decoder",),
        "decoder": (),
    }


def sizes(edge):
    """Return a shape with a number for each dynamic dimension."""
    return [SIZES.get(size, size) for size in edge.shape]
