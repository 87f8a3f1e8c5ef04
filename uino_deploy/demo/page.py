"""The demo's page: its numbers, pictures and method, as `uino_deploy.page` shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uino_deploy.charts import Bar, Chart, bars, histogram
from uino_deploy.demo.montage import gallery
from uino_deploy.demo.results import Results, spread
from uino_deploy.demo.segmentation import Outcome
from uino_deploy.page import Block, Headline, Headlines, Section, Table, Text, Verdict, page
from uino_deploy.painting import LEGEND

WORST = 6
SPREAD = 18
DIGITS = 6


def demo_page(results: Results, outcomes: Sequence[Outcome], digits: Sequence[Outcome]) -> str:
    """Return the HTML page of a demo.

    Args:
        results: all its numbers.
        outcomes: every held-out query.
        digits: every query of handwritten digits.
    """
    held_out = results.episodes["held_out"]
    failed = Verdict("FAILED", "failed", results.failures)
    return page(
        "uino-deploy demo",
        [
            "A trained few-shot segmentation model, exported piece by piece, checked against "
            f"PyTorch, and run without PyTorch on {held_out['queries']} scenes of "
            f"{held_out['classes']} characters that it never saw in training. It is shown each "
            "character once."
        ],
        [failed if results.failures else Verdict("PASSED", "passed")],
        [
            Section("Results", [_headlines(results), *_charts(results, outcomes)]),
            Section("Pictures", [LEGEND, *_galleries(outcomes, digits)]),
            Section("Measurements", _tables(results)),
            Section("Conditions of passing", [_conditions(results)]),
            Section("Method", [Text(_method(results))]),
        ],
    )


def _headlines(results: Results) -> Headlines:
    drift = abs(results.bundle.miou - results.reference.miou)
    gain = results.bundle.miou - results.baseline
    return Headlines(
        [
            Headline(f"{results.bundle.miou:.1f}", "mIoU, held-out classes", "1 shot, the bundle"),
            Headline(f"{drift:.2f}", "points from PyTorch", "the same episodes in PyTorch"),
            Headline(f"+{gain:.1f}", "over the baseline", "the encoder's prototypes only"),
            Headline(
                f"{results.digits.miou:.1f}", "mIoU, handwriting", "real digits, never trained"
            ),
            Headline(
                f"{1000 * results.seconds_per_query:.0f} ms",
                "a query",
                f"median, CPU, {results.provenance['machine'].split(', ')[-1]}",
            ),
        ]
    )


def _charts(results: Results, outcomes: Sequence[Outcome]) -> list[Chart]:
    rows = [
        ("bundle, held-out classes", "bundle", results.bundle.miou),
        ("PyTorch, held-out classes", "others", results.reference.miou),
        ("prototype baseline, held-out classes", "others", results.baseline),
        ("bundle, handwritten digits", "bundle", results.digits.miou),
    ]
    drawn = [Bar(label, {series: value}, f"{value:.1f}") for label, series, value in rows]
    counts, edges = np.histogram(
        [100 * min(max(outcome.iou, 0), 1) for outcome in outcomes], bins=10, range=(0, 100)
    )
    return [
        bars("mIoU", "mIoU, per cent", ["bundle", "others"], drawn),
        histogram("IoU of every held-out query", "IoU, per cent", edges.tolist(), counts.tolist()),
    ]


def _galleries(outcomes: Sequence[Outcome], digits: Sequence[Outcome]) -> list[Block]:
    """Choose the examples by rank, so that none is picked by hand."""
    ranked = sorted(outcomes, key=lambda outcome: outcome.iou)
    ranked_digits = sorted(digits, key=lambda outcome: outcome.iou)
    rest = ranked[WORST:]
    evenly = [rest[index] for index in spread(len(rest), SPREAD)]
    some_digits = [ranked_digits[index] for index in spread(len(ranked_digits), DIGITS)]
    return [
        gallery(f"The {WORST} worst of {len(outcomes)} queries", ranked[:WORST]),
        gallery(f"{SPREAD} more, evenly from the worst remaining to the best", evenly),
        gallery(f"Handwritten digits, {DIGITS} evenly from worst to best", some_digits),
    ]


def _conditions(results: Results) -> Text:
    return Text(
        [
            "Every exported piece and the whole bundle agree with PyTorch within the tolerances.",
            *(f"{threshold.sentence}." for threshold in results.thresholds),
        ],
        listed=True,
    )


def _tables(results: Results) -> Sequence[Table]:
    accuracy = Table(
        "Accuracy, per cent",
        ("model and classes", "mIoU", "FB-IoU"),
        [
            ("bundle, held-out classes", *_pair(results.bundle)),
            ("PyTorch, held-out classes", *_pair(results.reference)),
            ("prototype baseline, held-out classes", f"{results.baseline:.2f}", "-"),
            ("bundle, handwritten digits", *_pair(results.digits)),
        ],
        narrow=True,
    )
    seconds = Table(
        "Time, seconds",
        ("phase", "seconds"),
        [
            *((name, f"{value:.1f}") for name, value in results.seconds.items()),
            ("one query, median", f"{results.seconds_per_query:.4f}"),
        ],
        narrow=True,
    )
    return [accuracy, seconds, _provenance(results.provenance), _verification(results.verify)]


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
        ("item", "value"),
        [
            ("checkpoint", f"{checkpoint['name']}, {checkpoint['bytes'] / 1e6:.2f} MB"),
            ("its SHA-256", checkpoint["sha256"][:32]),
            ("bundle", f"{bundle['bytes'] / 1e6:.2f} MB"),
            ("model fingerprint", bundle["fingerprint"][:32]),
            ("runtime", backend),
            ("exported with", versions),
            ("machine", provenance["machine"]),
        ],
        narrow=True,
    )


def _method(results: Results) -> list[str]:
    held_out, digits = results.episodes["held_out"], results.episodes["digits"]
    note = results.provenance["checkpoint"].get("note")
    about_the_checkpoint = [f"About the checkpoint: {note}"] if note else []
    return [
        "Every episode is a support scene with one marked character and a query scene with the "
        "same character in another font, size, colour and place, both among distractors, drawn "
        f"with seed {results.provenance['seed']}. The {held_out['classes']} characters, their "
        "distractors included, were held out from training; the digits are scikit-learn's scans "
        f"of handwriting ({digits['queries']} queries), which training never saw either.",
        "The bundle runs in ONNX Runtime on the CPU. Each class is enrolled from one shot; a "
        "query's time is one image, from pixels to a mask of its own size, with the class already "
        "enrolled. PyTorch gets the same episodes.",
        "mIoU is the mean over the classes of summed intersections over summed unions, at the "
        "image's own size; FB-IoU is the mean of the same ratio for all foreground and all "
        "background.",
        "The baseline marks the pixels that are nearer to the support's foreground prototype than "
        "to its background prototype in the last layer of the same encoder, at whichever of 41 "
        "thresholds suits it best on these very queries: a flattering choice, and a measure of "
        "what the encoder can do by itself.",
        "The pictures are chosen only by rank of IoU. The predicted IoU is the mask decoder's "
        "prediction for its own mask; it can fall outside 0 to 100.",
        *about_the_checkpoint,
    ]
