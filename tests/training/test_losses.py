"""The losses against values worked out by hand, and the orderings they must respect."""

import math

import pytest
import torch

from uino_deploy.training.batches import NO_CLASS, Batch
from uino_deploy.training.losses import Classifier, SimilarityReadout, mask_loss


def test_an_undecided_mask_costs_what_the_formula_says():
    truth = torch.zeros(1, 4, 4)
    truth[0, :2] = 1
    loss = mask_loss(torch.zeros(1, 1, 4, 4), torch.tensor([[0.5]]), truth)
    dice = 1 - (2 * 4 + 1) / (8 + 8 + 1)
    assert loss.item() == pytest.approx(2 * math.log(2) + dice + 0.5**2, rel=1e-5)


def test_a_sure_and_right_mask_with_the_right_iou_costs_nothing():
    truth = torch.zeros(2, 8, 8)
    truth[:, 2:5, 1:7] = 1
    loss = mask_loss(40 * (2 * truth[:, None] - 1), torch.ones(2, 1), truth)
    assert loss.item() == pytest.approx(0, abs=1e-4)


def test_the_predicted_iou_is_pulled_towards_the_actual_one():
    truth = torch.zeros(1, 4, 4)
    truth[0, 0] = 1
    logits = torch.full((1, 1, 4, 4), -40.0)
    logits[0, 0, 0, :2] = 40  # finds half of the mask
    losses = {iou: mask_loss(logits, torch.tensor([[iou]]), truth).item() for iou in (0, 0.5, 1)}
    assert losses[0.5] == pytest.approx(min(losses.values()))
    assert losses[0] - losses[0.5] == pytest.approx(0.25, abs=1e-4)


def test_where_the_target_is_absent_an_empty_mask_of_iou_zero_is_right():
    nothing, something = torch.full((1, 1, 4, 4), -40.0), torch.zeros(1, 1, 4, 4)
    truth, zero, one = torch.zeros(1, 4, 4), torch.zeros(1, 1), torch.ones(1, 1)
    assert mask_loss(nothing, zero, truth).item() == pytest.approx(0, abs=1e-6)
    assert mask_loss(nothing, one, truth).item() == pytest.approx(1)
    assert mask_loss(something, zero, truth).item() == pytest.approx(2 * math.log(2))
    # Beside an episode that shows its target, each counts by half.
    shown = torch.zeros(1, 4, 4)
    shown[0, :2] = 1
    both = mask_loss(something.repeat(2, 1, 1, 1), zero.repeat(2, 1), torch.cat([truth, shown]))
    alone = mask_loss(something, zero, shown).item()
    assert both.item() == pytest.approx((2 * math.log(2) + alone) / 2)


def test_the_classifier_reads_pooled_things_tokens_and_the_ground():
    classifier = Classifier(width=3, classes=2)
    with torch.no_grad():
        classifier.weight.copy_(7 * torch.eye(3))  # its length does not matter
        classifier.scale.fill_(20)
    shares = torch.zeros(2, 2, 4)
    shares[:, 0, 0] = 1
    shares[0, 1, 1] = 0.5
    batch = Batch(
        images=torch.empty(0),
        shares=shares,
        labels=torch.tensor([[0, 1], [1, NO_CLASS]]),
        truth=torch.empty(0),
    )
    right = torch.eye(3)[torch.tensor([[0, 1, 2, 2], [1, 2, 2, 2]])]
    assert classifier.loss(right, batch).item() == pytest.approx(0, abs=1e-6)
    wrong = right.roll(1, dims=-1)
    assert classifier.loss(wrong, batch).item() == pytest.approx(1.5 * 20, rel=1e-4)


def test_the_classifier_also_tells_families():
    classifier = Classifier(width=3, classes=2, families=[0, 0])
    alone = Classifier(width=3, classes=2)
    alone.load_state_dict({k: v for k, v in classifier.state_dict().items() if k != "kinds"})
    shares = torch.zeros(1, 2, 4)
    shares[:, 0, 0] = 1
    labels = torch.tensor([[1, NO_CLASS]])
    batch = Batch(torch.empty(0), shares, labels, torch.empty(0))
    tokens = torch.randn(1, 4, 3)
    # One family is always told right.
    assert classifier.loss(tokens, batch).item() == pytest.approx(alone.loss(tokens, batch).item())
    split = Classifier(width=3, classes=2, families=[0, 1])
    with torch.no_grad():
        split.weight.copy_(classifier.weight)
        split.kinds.copy_(torch.tensor([[1.0, 0, 0], [-1, 0, 0]]))
        split.scale.fill_(1.0)
        alone.scale.fill_(1.0)
    first = torch.tensor([1.0, 0, 0]).expand(1, 4, 3)
    found = split.loss(first, batch) - alone.loss(first, batch)
    assert found.item() == pytest.approx(math.log(1 + math.exp(2)), rel=1e-5)


def test_the_readout_prefers_similarity_on_the_target():
    share = torch.tensor([[1.0, 0.0, 0.0]])
    readout = SimilarityReadout()
    on, off = torch.tensor([[1.0, -1.0, -1.0]]), torch.tensor([[-1.0, 1.0, -1.0]])
    assert readout.loss(on, share) < readout.loss(off, share)


def test_pixels_that_do_not_count_change_nothing():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 8, 8, generator=generator, requires_grad=True)
    truth = (torch.rand(3, 8, 8, generator=generator) < 0.4).float()
    iou = torch.rand(3, 1, generator=generator)
    everything = torch.ones(3, 8, 8, dtype=torch.bool)
    assert mask_loss(logits, iou, truth, everything).item() == pytest.approx(
        mask_loss(logits, iou, truth).item(), rel=1e-6
    )
    counted = everything.clone()
    counted[:, :, 5:] = False
    loss = mask_loss(logits, iou, truth, counted)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[..., 5:].any()
    other = torch.where(counted, truth, 1 - truth)
    assert mask_loss(logits, iou, other, counted).item() == loss.item()
    # The rest is judged as if it were all there is: here the border is cut off exactly.
    alone = mask_loss(logits[..., :5], iou, truth[..., :5])
    assert loss.item() == pytest.approx(alone.item(), rel=1e-5)
