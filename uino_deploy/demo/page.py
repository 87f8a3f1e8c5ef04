"""Turn a demo's results into the page that `report.render` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uino_deploy.demo.report import Bar, Example, Headline, Report, Table
from uino_deploy.demo.results import Results, spread
from uino_deploy.demo.segmentation import Outcome

WORST = 6
SPREAD = 18
DIGITS = 6


def page(results: Results, outcomes: Sequence[Outcome], digits: Sequence[Outcome]) -> Report:
    """Return the page of a demo: numbers, pictures, method."""
    held_out = results.episodes["held_out"]
    return Report(
        title="uino-deploy demo",
        lead=(
            "A trained few-shot segmentation model, exported piece by piece, checked against "
            f"PyTorch, and run without PyTorch on {held_out['queries']} scenes of "
            f"{held_out['classes']} characters that it never saw in training. It is shown each "
            "character once."
        ),
        failures=results.failures,
        thresholds=[
            "Every exported piece and the whole agree with PyTorch within the tolerance table.",
            *(f"{threshold.sentence}." for threshold in results.thresholds),
        ],
        headlines=_headlines(results),
        bars=[
            Bar("bundle, held-out classes", results.bundle.miou, accent=True),
            Bar("PyTorch, held-out", results.reference.miou),
            Bar("prototype baseline", results.baseline),
            Bar("bundle, digits", results.digits.miou, accent=True),
        ],
        ious=[outcome.iou for outcome in outcomes],
        sections=_sections(outcomes, digits),
        tables=_tables(results),
        method=_method(results),
    )


def _headlines(results: Results) -> list[Headline]:
    drift = abs(results.bundle.miou - results.reference.miou)
    gain = results.bundle.miou - results.baseline
    return [
        Headline(f"{results.bundle.miou:.1f}", "mIoU, held-out classes", "1 shot, the bundle"),
        Headline(f"{drift:.2f}", "points from PyTorch", "the same episodes in PyTorch"),
        Headline(f"+{gain:.1f}", "over the baseline", "the encoder's prototypes alone"),
        Headline(f"{results.digits.miou:.1f}", "mIoU, handwriting", "real digits, never trained"),
        Headline(
            f"{1000 * results.seconds_per_query:.0f} ms",
            "a query",
            f"median, CPU, {results.provenance['machine'].split(', ')[-1]}",
        ),
    ]


def _sections(
    outcomes: Sequence[Outcome], digits: Sequence[Outcome]
) -> list[tuple[str, list[Example]]]:
    """Choose what to show by rank, so that nothing is picked by hand."""
    ranked = sorted(outcomes, key=lambda outcome: outcome.iou)
    ranked_digits = sorted(digits, key=lambda outcome: outcome.iou)
    rest = ranked[WORST:]
    evenly = [rest[index] for index in spread(len(rest), SPREAD)]
    some_digits = [ranked_digits[index] for index in spread(len(ranked_digits), DIGITS)]
    return [
        (f"The {WORST} worst of {len(outcomes)} queries", _examples(ranked[:WORST])),
        (f"{SPREAD} more, evenly from the worst left to the best", _examples(evenly)),
        (f"Handwritten digits, {DIGITS} evenly from worst to best", _examples(some_digits)),
    ]


def _examples(outcomes: Sequence[Outcome]) -> list[Example]:
    return [
        Example(
            title=outcome.title,
            support=outcome.episode.support[0].image,
            support_mask=outcome.episode.support[0].mask,
            query=outcome.episode.query.image,
            truth=outcome.episode.query.mask,
            predicted=outcome.result.mask,
            iou=outcome.iou,
            score=outcome.result.score,
        )
        for outcome in outcomes
    ]


def _tables(results: Results) -> list[Table]:
    accuracy = Table(
        "Accuracy, per cent",
        ("", "mIoU", "FB-IoU"),
        [
            ("bundle, held-out classes", *_pair(results.bundle)),
            ("PyTorch, held-out classes", *_pair(results.reference)),
            ("prototype baseline, held-out classes", f"{results.baseline:.2f}", "-"),
            ("bundle, handwritten digits", *_pair(results.digits)),
        ],
    )
    seconds = Table(
        "Time, seconds",
        ("phase", "seconds"),
        [
            *((name, f"{value:.1f}") for name, value in results.seconds.items()),
            ("one query, median", f"{results.seconds_per_query:.4f}"),
        ],
    )
    return [accuracy, seconds, _verification(results.verify), _provenance(results.provenance)]


def _pair(accuracy: Any) -> tuple[str, str]:
    return f"{accuracy.miou:.2f}", f"{accuracy.fb_iou:.2f}"


def _verification(verified: Mapping[str, Any]) -> Table:
    swaps = {swap["piece"]: swap for swap in verified["swaps"]}
    rows = []
    for compared in verified["pieces"]:
        swap = swaps.get(compared["piece"], {})
        rows.append(
            (
                f"{compared['piece']}.{compared['output']}",
                f"{compared['relative_l2']:.1e}",
                f"{compared['allowed']:.0e}",
                f"{compared['cosine']:.6f}",
                f"{swap.get('mask_iou', 0):.4f}",
            )
        )
    whole = swaps["query"]
    rows.append(
        (
            "the whole",
            f"{whole['logits_relative_l2']:.1e}",
            f"{whole['logits_allowed']:.0e}",
            "-",
            f"{whole['mask_iou']:.4f}",
        )
    )
    return Table(
        "The bundle against PyTorch",
        ("output", "relative L2", "allowed", "cosine", "mask IoU"),
        rows,
    )


def _provenance(provenance: Mapping[str, Any]) -> Table:
    checkpoint, bundle = provenance["checkpoint"], provenance["bundle"]
    backend = ", ".join(f"{name} {value}" for name, value in provenance["backend"].items())
    versions = ", ".join(f"{name} {value}" for name, value in provenance["versions"].items())
    return Table(
        "Provenance",
        ("", ""),
        [
            ("checkpoint", f"{checkpoint['name']}, {checkpoint['bytes'] / 1e6:.2f} MB"),
            ("its SHA-256", checkpoint["sha256"][:32]),
            ("bundle", f"{bundle['bytes'] / 1e6:.2f} MB"),
            ("model fingerprint", bundle["fingerprint"][:32]),
            ("runtime", backend),
            ("exported with", versions),
            ("machine", provenance["machine"]),
        ],
    )


def _method(results: Results) -> list[str]:
    held_out, digits = results.episodes["held_out"], results.episodes["digits"]
    note = results.provenance["checkpoint"].get("note")
    about_the_checkpoint = [f"About the checkpoint: {note}"] if note else []
    return [
        "Every episode is a support scene with one marked character and a query scene with the "
        "same character in another font, size, colour and place, both among distractors, drawn "
        f"from seed {results.provenance['seed']}. The {held_out['classes']} characters, their "
        "distractors included, were held out from training; the digits are scikit-learn's scans "
        f"of handwriting ({digits['queries']} queries), which training never saw either.",
        "The bundle runs in ONNX Runtime on the CPU. Each class is enrolled from one shot; a "
        "query's time is one image, from pixels to a mask of its own size, with the class already "
        "enrolled. PyTorch gets the same episodes.",
        "mIoU is the mean over the classes of summed intersections over summed unions, at the "
        "image's own size; FB-IoU is the mean of the same ratio for all foreground and all "
        "background.",
        "The baseline marks what is nearer to the support's foreground prototype than to its "
        "background prototype in the last layer of the same encoder, at the one threshold of 41 "
        "that suits it best on these very queries: it is flattered, and still shows what the "
        "encoder alone can do.",
        "The pictures are chosen by rank of IoU alone. A prediction's own estimate is the mask "
        "decoder's IoU head.",
        *about_the_checkpoint,
    ]
