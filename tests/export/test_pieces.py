"""The pieces, chained by their edges, are the model."""

import pytest
import torch

from tests.export.conftest import random_model
from uino_deploy.config import VARIANTS
from uino_deploy.export.pieces import edge_names, pieces_of
from uino_deploy.export.precision import PIECES, parse_precision


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_chained_pieces_equal_the_model(variant):
    model = random_model(variant)
    image, shots = torch.randn(2, 3, 112, 112), torch.randn(1, 3, 3, 112, 112)
    masks = torch.rand(1, 3, model.config.tokens)
    known = {"image": image, "mask": masks[0]}
    pieces = {piece.name: piece for piece in pieces_of(model, parse_precision([]), 18)}

    def run(name: str, **feeds: torch.Tensor) -> dict[str, torch.Tensor]:
        piece = pieces[name]
        with torch.inference_mode():
            outputs = piece.module(*(feeds[edge.name] for edge in piece.inputs))
        return dict(zip((edge.name for edge in piece.outputs), outputs, strict=True))

    deep = run("encoder", image=shots[0])["deep"]
    features = run("support", deep=deep, mask=masks[0])
    known |= {"support_deep": deep[None], "prototypes": features.pop("prototypes")}
    known |= {name: tensor[None] for name, tensor in features.items()}
    encoded = run("encoder", image=image)
    known |= {"early": encoded["early"], "query_deep": encoded["deep"]}
    for name in ("adapter", "prompt", "decoder"):
        known |= run(name, **known)

    with torch.inference_mode():
        logits, iou = model(image, shots, masks)
    torch.testing.assert_close(known["logits"], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(known["iou"], iou, rtol=1e-4, atol=1e-5)


def test_a_variant_leaves_out_what_it_does_not_use():
    names = edge_names(random_model("comp").config)
    assert names["prompt"] == (("query_deep", "prototypes"), ("dense",))
    assert names["support"] == (("deep", "mask"), ("prototypes", "sparse"))


def test_edges_have_their_producers_type(model):
    precision = parse_precision(["fp32", "encoder=fp16", "adapter=bf16"])
    types = {
        (piece.name, edge.name): edge.dtype
        for piece in pieces_of(model, precision, 18)
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
    adapter = next(p for p in pieces_of(model, parse_precision([]), 18) if p.name == "adapter")
    kinds = {type(module).__name__ for module in adapter.module.modules()}
    assert "BatchNorm2d" not in kinds
    early = torch.randn(2, model.config.tokens, model.config.encoder.width)
    with torch.inference_mode():
        torch.testing.assert_close(
            adapter.module(early)[0], model.adapter(early), rtol=1e-4, atol=1e-5
        )
