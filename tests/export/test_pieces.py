"""The pieces, chained as `pipeline` says, are the model."""

import pytest
import torch

from tests.export.conftest import random_model
from uino_deploy.config import VARIANTS
from uino_deploy.export.examples import example_of
from uino_deploy.export.pieces import (
    describe_pieces,
    exportable_pieces,
    reference_pieces,
    run_modules,
)
from uino_deploy.export.precision import parse_precision
from uino_deploy.images import preprocess_image, preprocess_mask
from uino_deploy.letters import draw_letter
from uino_deploy.pipeline import CLASS, PIECES, QUERY, with_class_axis


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["exportable", "reference"])
def test_the_chained_pieces_equal_the_model(variant, kind):
    model = random_model(variant)
    image, shots = torch.randn(2, 3, 112, 112), torch.randn(1, 3, 3, 112, 112)
    masks = torch.rand(1, 3, model.config.tokens)
    if kind == "reference":
        pieces = reference_pieces(model)
    else:
        pieces = exportable_pieces(model, parse_precision([]), 18)

    with torch.inference_mode():
        given = {"support_image": shots[0], "mask": masks[0]}
        support = run_modules(CLASS, [pieces[name] for name in CLASS.pieces], given)
        query = {**with_class_axis(support), "image": image}
        found = run_modules(QUERY, [pieces[name] for name in QUERY.pieces], query)
        logits, iou = model(image, shots, masks)
    torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["iou"], iou, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_example_is_the_models_own_answer(variant):
    model = random_model(variant)
    (query, _), (shot, mask) = draw_letter(1), draw_letter(2)
    size, patch = model.config.image_size, model.config.encoder.patch
    pixels, support = (torch.from_numpy(preprocess_image(each, size)) for each in (query, shot))
    shares = torch.from_numpy(preprocess_mask(mask, size, patch))
    with torch.inference_mode():
        logits, iou = model(pixels[None], support[None, None], shares[None, None])
    example = example_of(model, query, [(shot, mask)])
    torch.testing.assert_close(example["logits"], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(example["iou"], iou, rtol=1e-4, atol=1e-5)


def test_edges_have_their_producers_type(model):
    precision = parse_precision(["fp32", "encoder=fp16", "adapter=bf16"])
    types = {
        (name, edge.name): edge.dtype
        for name, piece in describe_pieces(model.config, precision).items()
        for edge in (*piece.inputs, *piece.outputs)
    }
    half = {edge for edge, dtype in types.items() if dtype == "float16"}
    assert half == {
        ("encoder", "early"),
        ("encoder", "deep"),
        ("adapter", "early"),
        ("support", "deep"),
        ("prompt", "query_deep"),
        ("prompt", "support_deep"),
    }
    assert {name for name, _ in types} == set(PIECES)


def test_batch_norm_is_folded(model):
    adapter = exportable_pieces(model, parse_precision([]), 18)["adapter"]
    kinds = {type(module).__name__ for module in adapter.module.modules()}
    assert "BatchNorm2d" not in kinds
    early = torch.randn(2, model.config.tokens, model.config.encoder.width)
    with torch.inference_mode():
        torch.testing.assert_close(
            adapter.module(early)[0], model.adapter(early), rtol=1e-4, atol=1e-5
        )
