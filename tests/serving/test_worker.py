"""What a worker does with its jobs, in this process."""

import errno
import io
import time
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage")

from uino_deploy.errors import InputError
from uino_deploy.images.opening import Received
from uino_deploy.runtime import Predictor, Support
from uino_deploy.serving.messages import Query
from uino_deploy.serving.refusals import Refused
from uino_deploy.serving.settings import Limits, Settings
from uino_deploy.serving.worker import EnrollJob, SegmentJob, Worker, best_batch


def png(array):
    written = io.BytesIO()
    Image.fromarray(array).save(written, "PNG")
    return written.getvalue()


@pytest.fixture
def job(red_square):
    image, mask = (Received(png(array), "1") for array in (red_square[0], red_square[1] * 255))
    return EnrollJob("red", ((image, mask),), ())


@pytest.fixture
def worker(fake_bundle, tmp_path, job):
    """Return a worker with the class `red`."""
    limits = Limits(pixels=100_000)
    settings = Settings(fake_bundle, tmp_path / "classes", Predictor.load, batch=4, limits=limits)
    made = Worker(settings)
    assert made.enroll(job).status == 201
    return made


def test_images_share_a_run_and_bad_ones_fail_alone(worker, red_square):
    image = red_square[0]
    query = Query(classes="red")
    jobs = [
        SegmentJob(png(image), query),
        SegmentJob(b"text", query),
        SegmentJob(png(np.ascontiguousarray(image[:, ::-1])), query),
        SegmentJob(png(image), Query(classes="none")),
        SegmentJob(png(image), Query(classes="red", threshold=float("nan"))),
    ]
    first, text, second, unknown, threshold = worker.segment(jobs)
    assert [each.batch for each in (first, second)] == [3, 3]
    alone = msgspec.json.decode(worker.segment(jobs[:1])[0].body)
    shared = msgspec.json.decode(first.body)
    assert shared["classes"] == alone["classes"]
    assert (shared["batch"], alone["batch"]) == (3, 1)
    boxes = [msgspec.json.decode(each.body)["classes"][0]["box"] for each in (first, second)]
    width = image.shape[1]
    assert boxes[1][::2] == [width - boxes[0][2], width - boxes[0][0]]
    assert [each.status for each in (text, unknown, threshold)] == [400, 404, 400]


def test_a_class_is_enrolled_as_the_predictor_does_it(worker, fake_bundle, red_square):
    made = Support.load(worker.library.path("red"))
    expected = Predictor.load(fake_bundle).enroll([red_square], "red")
    assert made.tensors.keys() == expected.tensors.keys()
    for name, array in expected.tensors.items():
        np.testing.assert_allclose(made.tensors[name], array, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_enrolled_leaves_the_class_as_it_was(worker, job, monkeypatch):
    before = worker.library.path("red").read_bytes()
    large = Received(png(np.zeros((400, 300), np.uint8)), "1")
    refused = worker.enroll(EnrollJob("red", ((job.shots[0][0], large),), ()))
    assert (refused.status, refused.why) == (
        413,
        "mask 1 has more than 100000 pixels; send a smaller one",
    )

    def full(self, path, force):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Support, "save", full)
    refused = worker.enroll(job)
    assert isinstance(refused, Refused)
    assert (refused.status, refused.why) == (
        507,
        "the folder of classes cannot be used: No space left on device",
    )
    assert worker.library.path("red").read_bytes() == before


@pytest.mark.parametrize(
    ("once", "each", "most", "expected"),
    [(0.01, 0.0, 99, 8), (0.0, 0.003, 99, 1), (0.0, 0.0, 1, 1)],
    ids=["the call costs", "the images cost", "the engine is for one"],
)
def test_a_batch_is_shared_only_if_that_is_faster(once, each, most, expected):
    def encode_all(images):
        if len(images) > most:
            raise InputError("the engine was built for fewer")
        time.sleep(once + each * len(images))

    backend = SimpleNamespace(synchronise=lambda: None)
    assert best_batch(SimpleNamespace(encode_all=encode_all, backend=backend)) == expected
