"""`enroll` and `predict` from the command line: results, errors and what they leave behind."""

import contextlib
import errno
import json
import os
import shutil
import sys

import msgspec
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from uino_deploy.bundle import MANIFEST, Bundle, write_manifest
from uino_deploy.dependencies import is_importable
from uino_deploy.errors import InputError, OutputExists
from uino_deploy.files import sha256
from uino_deploy.runtime import Predictor, Support, segment_folder
from uino_deploy.runtime.shots import split_shot


@pytest.fixture
def supports(fake_bundle, red_square, tmp_path):
    """Return the support files of the classes red and blue."""
    image, mask = red_square
    predictor = Predictor.load(fake_bundle, threads=1)
    predictor.enroll([(image, mask)], "red").save(tmp_path / "red.safetensors")
    predictor.enroll([(image, 1 - mask)], "blue").save(tmp_path / "blue.safetensors")
    return tmp_path / "red.safetensors", tmp_path / "blue.safetensors"


def one_line(stderr, *words):
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    for word in words:
        assert str(word) in stderr


def left_over(folder):
    """Return what a failed command may have left: hidden siblings of its output."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# --- enroll


def enroll(run, bundle, output, *shots, name="red"):
    arguments = [argument for shot in shots for argument in ("--shot", shot)]
    return run("enroll", bundle, *arguments, "--name", name, "-o", output, "--threads", 1)


def test_enroll_writes_a_support_that_loads(run, fake_bundle, red_files, tmp_path):
    image, mask = red_files
    output = tmp_path / "new" / "red.safetensors"
    code, out, err = enroll(run, fake_bundle, output, f"{image}:{mask}", f"{image}:{mask}")
    assert (code, err) == (0, "")
    assert out.startswith("red: 2 shots, ")
    support = Support.load(output)
    assert (support.name, support.shots, support.precision) == ("red", 2, "fp32")
    assert support.fingerprint == Bundle.open(fake_bundle).manifest.fingerprint


def test_enroll_json_is_one_document(run, fake_bundle, red_files, tmp_path):
    output = tmp_path / "red.safetensors"
    code, out, _ = run(
        "enroll", fake_bundle, "--shot", ":".join(map(str, red_files)), "--name", "red",
        "-o", output, "--json",
    )  # fmt: skip
    assert code == 0
    document = json.loads(out)
    assert document["support"] == str(output)
    assert document["bytes"] == output.stat().st_size
    assert document["shots"] == 1


def test_enroll_takes_masks_from_coco(run, fake_bundle, red_files, tmp_path):
    image, mask = red_files
    square = [20, 15, 60, 15, 60, 45, 20, 45]
    content = {
        "images": [{"id": 5, "file_name": "red.png", "height": 60, "width": 80}],
        "categories": [{"id": 1, "name": "red thing"}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 1, "segmentation": [square]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    by_coco = tmp_path / "coco.safetensors"
    code, _, err = run(
        "enroll", fake_bundle, "--shot", image, "--coco", tmp_path / "coco.json",
        "--category", "red thing", "--name", "red", "-o", by_coco,
    )  # fmt: skip
    assert (code, err) == (0, "")
    enroll(run, fake_bundle, tmp_path / "mask.safetensors", f"{image}:{mask}")
    assert by_coco.read_bytes() == (tmp_path / "mask.safetensors").read_bytes()

    code, _, err = run(
        "enroll", fake_bundle, "--shot", image, "--coco", tmp_path / "coco.json",
        "--name", "red", "-o", tmp_path / "other.safetensors",
    )  # fmt: skip
    assert code == 2
    one_line(err, "category 'red' 0 times")
    code, _, err = run(
        "enroll", fake_bundle, "--shot", image, "--category", "red", "--name", "red", "-o", by_coco
    )
    assert code == 2
    one_line(err, "--category needs --coco")


def test_enroll_takes_one_label_and_says_what_it_assumed(run, fake_bundle, red_files, tmp_path):
    image, mask = red_files
    with Image.open(mask) as opened:
        truth = np.asarray(opened) != 0
    labels = truth.astype(np.uint8) * 7
    labels[:9, :9] = 3
    Image.fromarray(labels).save(tmp_path / "labels.png")
    shot = f"{image}:{tmp_path / 'labels.png'}"
    code, _, err = enroll(run, fake_bundle, tmp_path / "all.safetensors", shot)
    assert code == 0
    assert err.startswith("warning: mask ")
    assert "labels 3, 7: all are taken for the object; --label takes one" in err
    one, same = tmp_path / "one.safetensors", tmp_path / "same.safetensors"
    code, _, err = run(
        "enroll", fake_bundle, "--shot", shot, "--label", 7, "--name", "red", "-o", one
    )
    assert (code, err) == (0, "")
    enroll(run, fake_bundle, same, f"{image}:{mask}")
    assert one.read_bytes() == same.read_bytes()


def test_a_shot_is_split_at_the_last_colon_that_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.png", "m:1.png", "c.png"):
        (tmp_path / name).write_bytes(b"")
    for shot in ("a:b.png:m:1.png", "c.png:m:1.png", "a:b.png:c.png", f"{tmp_path}/c.png:c.png"):
        image, mask = split_shot(shot)
        assert f"{image}:{mask}" == shot
    with pytest.raises(InputError, match="has no mask"):
        split_shot("c.png")
    with pytest.raises(InputError, match=r"'gone\.png' does not exist"):
        split_shot("c.png:gone.png")
    with pytest.raises(InputError, match=r"'gone\.png' does not exist"):
        split_shot("gone.png:c.png")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="'folder' is a folder"):
        split_shot("folder:c.png")
    with pytest.raises(InputError, match="'folder' is a folder"):
        split_shot("c.png:folder")


def spoil_mask(kind, tmp_path):
    path = tmp_path / "bad-mask.png"
    if kind == "unreadable":
        path.write_text("no picture")
    else:
        size = (80, 59) if kind == "size" else (80, 60)
        Image.new("L", size, 255 if kind == "full" else 0).save(path)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "the mask is empty"),
        ("full", "covers the whole image"),
        ("size", "(59, 80)"),
        ("unreadable", "bad-mask.png cannot be read"),
    ],
)
def test_enroll_refuses_a_bad_mask(run, fake_bundle, red_files, tmp_path, kind, words):
    mask = spoil_mask(kind, tmp_path)
    before = sorted(tmp_path.iterdir())
    code, out, err = enroll(run, fake_bundle, tmp_path / "s.safetensors", f"{red_files[0]}:{mask}")
    assert (code, out) == (2, "")
    one_line(err, words)
    assert sorted(tmp_path.iterdir()) == before


def test_enroll_refuses_an_unusable_name_and_a_missing_image(run, fake_bundle, red_files, tmp_path):
    image, mask = red_files
    output = tmp_path / "s.safetensors"
    code, _, err = enroll(run, fake_bundle, output, f"{image}:{mask}", name="../evil")
    assert code == 2
    one_line(err, "class name")
    code, _, err = enroll(run, fake_bundle, output, f"{tmp_path / 'gone.png'}:{mask}")
    assert code == 2
    one_line(err, "gone.png")
    assert not output.exists()


def test_enroll_overwrites_only_by_force(run, fake_bundle, red_files, tmp_path):
    shot = ":".join(map(str, red_files))
    output = tmp_path / "s.safetensors"
    output.write_text("precious")
    code, _, err = enroll(run, fake_bundle, output, shot)
    assert code == 2
    one_line(err, "exists", "--force")
    assert output.read_text() == "precious"
    assert (
        run("enroll", fake_bundle, "--shot", shot, "--name", "r", "-o", output, "--force")[0] == 0
    )
    assert Support.load(output).name == "r"


# --- predict


def predict(run, bundle, output, *arguments):
    return run("predict", bundle, *arguments, "-o", output, "--threads", 1, "--quiet")


def test_predict_writes_masks_overlays_and_a_line_per_image(
    run, fake_bundle, supports, red_files, red_square, tmp_path
):
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    shutil.copy(red_files[0], photos / "x.png")
    Image.fromarray(red_square[0].repeat(2, 0)).save(photos / "more" / "x.jpg", quality=95)
    output = tmp_path / "found"
    code, out, err = predict(
        run, fake_bundle, output, photos, f"{photos}/*/*.jpg",
        "--support", supports[0], "--support", supports[1],
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "2 images" in out.splitlines()[-1]
    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [
        str(photos / "x.png"),
        str(photos / "more" / "x.jpg"),
    ]
    assert [(line["width"], line["height"]) for line in lines] == [(80, 60), (80, 120)]
    assert [found["name"] for found in lines[1]["classes"]] == ["red", "blue"]
    for line, factor in zip(lines, (1, 2), strict=True):
        truth = red_square[1].repeat(factor, 0) * 255
        with Image.open(output / line["classes"][0]["mask"]) as image:
            mask = np.asarray(image)
        assert set(np.unique(mask)) == {0, 255}
        assert (mask == truth).mean() > 0.97
        for key in ("labels", "overlay"):
            assert (output / line[key]).is_file()
    assert lines[1]["overlay"] == "overlays/x-2.jpg"


def test_segment_folder_is_what_the_command_does(run, fake_bundle, supports, red_files, tmp_path):
    assert predict(run, fake_bundle, tmp_path / "a", red_files[0], "--support", supports[0])[0] == 0
    predictor, steps = Predictor.load(fake_bundle, threads=1), []

    @contextlib.contextmanager
    def progress(what, total):
        steps.append((what, total))
        yield lambda: steps.append("step")

    folder = tmp_path / "b"
    records = segment_folder(predictor, red_files[0], supports[:1], folder, progress=progress)
    assert steps == [("segmenting", 1), "step"]
    lines = (folder / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    said = json.loads((tmp_path / "a" / "results.jsonl").read_text())
    assert {**records[0], "seconds": 0} == {**said, "seconds": 0}
    mask = records[0]["classes"][0]["mask"]
    assert (folder / mask).read_bytes() == (tmp_path / "a" / mask).read_bytes()
    with pytest.raises(OutputExists, match="--force"):
        segment_folder(predictor, [red_files[0]], [Support.load(supports[0])], folder)


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_a_name_that_is_no_utf8_is_segmented_and_shown(
    run, fake_bundle, supports, red_files, tmp_path
):
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(red_files[0], odd)
    output = tmp_path / "found"
    code, out, _ = predict(run, fake_bundle, output, odd, "--support", supports[0])
    assert code == 0
    assert "caf%E9.png" in out
    (line,) = (output / "results.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["image"].endswith("caf%E9.png")


def test_a_bundle_of_links_runs(run, fake_bundle, supports, red_files, tmp_path):
    """As a cache of Hugging Face is laid out: named by hash elsewhere, linked into a snapshot."""
    snapshot, blobs = tmp_path / "snapshots" / "1", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in (each for each in fake_bundle.iterdir() if each.is_file()):
        blob = blobs / sha256(path)
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    for backend in ("onnxruntime", "openvino"):
        if is_importable(backend):
            image, support = ("--support", supports[0]), ("--backend", backend)
            code, _, err = predict(
                run, snapshot, tmp_path / backend, red_files[0], *image, *support
            )
            assert code == 0, err


def test_predict_json_is_one_document(run, fake_bundle, supports, red_files, tmp_path):
    output = tmp_path / "found"
    code, out, err = run(
        "predict", fake_bundle, red_files[0], "--support", supports[0], "-o", output,
        "--no-overlay", "--threshold", 1e9, "--threads", 1, "--json",
    )  # fmt: skip
    assert code == 0
    assert err == "segmenting: 1/1\n"
    document = json.loads(out)
    assert document["backend"] == "onnxruntime"
    assert document["provider"] == "CPUExecutionProvider"
    assert document["threads"] == "1"
    assert document["images"][0]["classes"][0]["area"] == 0
    assert sorted(path.name for path in output.iterdir()) == ["masks", "results.jsonl"]
    assert json.loads((output / "results.jsonl").read_text()) == document["images"][0]


@pytest.mark.parametrize("late", [False, True], ids=["header", "pixels"])
def test_one_unreadable_image_is_a_line_and_the_others_are_kept(
    run, fake_bundle, supports, red_files, tmp_path, late
):
    bad = tmp_path / os.fsdecode(b"b\xe4d.png")
    data = red_files[0].read_bytes()
    bad.write_bytes(data[: len(data) // 2] if late else b"no picture")
    output = tmp_path / "found"
    code, out, err = predict(run, fake_bundle, output, bad, red_files[0], "--support", supports[0])
    assert code == 1
    assert out.splitlines()[-1].startswith("1 image, ")
    assert err.count("\n") == 2
    assert "b%E4d.png cannot be read" in err
    assert "1 of 2 images failed" in err
    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert sorted(lines[0]) == ["error", "image"]
    assert "cannot be read" in lines[0]["error"]
    assert lines[0]["image"].endswith("b%E4d.png")
    assert (output / lines[1]["classes"][0]["mask"]).is_file()


def test_images_of_which_none_is_good_are_lines_each(
    run, fake_bundle, supports, red_files, tmp_path
):
    bad = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in bad:
        path.write_bytes(b"no picture")
    output = tmp_path / "found"
    code, out, err = predict(run, fake_bundle, output, *bad, "--support", supports[0])
    assert (code, out) == (2, "")
    assert "one.png cannot be read" in err
    assert "two.png cannot be read" in err
    assert "2 of 2 images failed" in err
    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [str(path) for path in bad]
    assert all("cannot be read" in line["error"] for line in lines)
    code, out, err = predict(run, fake_bundle, output, bad[0], "--support", supports[0], "--force")
    assert (code, out) == (2, "")
    one_line(err, "one.png cannot be read")
    assert (output / "results.jsonl").read_text().count("\n") == 1


def test_an_output_that_holds_an_input_is_refused_whatever_is_forced(
    run, fake_bundle, supports, red_files, tmp_path
):
    output = tmp_path / "found"
    assert predict(run, fake_bundle, output, red_files[0], "--support", supports[0])[0] == 0
    mask = next((output / "masks").rglob("*.png"))
    support = shutil.copy(supports[0], output / "mine.safetensors")
    for image, given in ((mask, supports[0]), (red_files[0], support)):
        code, _, err = predict(run, fake_bundle, output, image, "--support", given, "--force")
        assert code == 2
        one_line(err, "holds the input", "choose another output")
    assert mask.is_file()
    image, its_mask = red_files
    before = its_mask.read_bytes()
    code, _, err = run("enroll", fake_bundle, "--shot", f"{image}:{its_mask}", "--name", "red",
                       "-o", its_mask, "--force")  # fmt: skip
    assert code == 2
    one_line(err, "is also an input")
    assert its_mask.read_bytes() == before


def test_a_folder_given_as_a_support_is_named(run, fake_bundle, supports, red_files, tmp_path):
    code, _, err = predict(
        run, fake_bundle, tmp_path / "found", red_files[0], "--support", supports[0].parent
    )
    assert code == 2
    one_line(err, "cannot be read: it is a folder", "name a file in it")


def test_an_image_whose_name_is_not_utf_8_is_segmented(
    run, fake_bundle, supports, red_files, tmp_path
):
    image = shutil.copy(red_files[0], tmp_path / os.fsdecode(b"r\xe9d.png"))
    output = tmp_path / "found"
    assert predict(run, fake_bundle, output, image, "--support", supports[0])[0] == 0
    line = json.loads((output / "results.jsonl").read_text())
    assert line["classes"][0]["mask"] == "masks/red/r%E9d.png"
    assert (output / line["classes"][0]["mask"]).is_file()


@pytest.mark.parametrize("late", [False, True], ids=["header", "pixels"])
def test_fail_fast_stops_at_one_unreadable_image_and_leaves_nothing(
    run, fake_bundle, supports, red_files, tmp_path, late
):
    bad = tmp_path / "bad.png"
    data = red_files[0].read_bytes()
    bad.write_bytes(data[: len(data) // 2] if late else b"no picture")
    before = sorted(tmp_path.iterdir())
    code, out, err = predict(
        run, fake_bundle, tmp_path / "found", red_files[0], bad, "--support", supports[0],
        "--fail-fast",
    )  # fmt: skip
    assert (code, out) == (2, "")
    one_line(err, "bad.png cannot be read")
    assert sorted(tmp_path.iterdir()) == before


def test_a_missing_image_and_a_missing_support(run, fake_bundle, supports, red_files, tmp_path):
    output = tmp_path / "found"
    code, _, err = predict(
        run, fake_bundle, output, tmp_path / "gone.png", "--support", supports[0]
    )
    assert code == 2
    one_line(err, "gone.png does not exist")
    code, _, err = predict(run, fake_bundle, output, red_files[0], "--support", tmp_path / "gone")
    assert code == 2
    one_line(err, "gone does not exist")
    assert not output.exists()
    assert not left_over(tmp_path)


def test_another_models_support(run, fake_bundle, supports, red_files, tmp_path):
    other = shutil.copytree(fake_bundle, tmp_path / "other.uino")
    manifest = Bundle.open(other).manifest
    write_manifest(other, msgspec.structs.replace(manifest, fingerprint="0" * 64))
    code, _, err = predict(run, other, tmp_path / "found", red_files[0], "--support", supports[0])
    assert code == 2
    one_line(err, "made by another model", "enroll the class again")
    assert not (tmp_path / "found").exists()


def test_two_classes_of_one_name(run, fake_bundle, supports, red_files, tmp_path):
    copy = shutil.copy(supports[0], tmp_path / "copy.safetensors")
    code, _, err = predict(
        run, fake_bundle, tmp_path / "found", red_files[0],
        "--support", supports[0], "--support", copy,
    )  # fmt: skip
    assert code == 2
    one_line(err, "both hold a class named 'red'")


def break_byte(bundle):
    with open(bundle / "decoder.onnx", "r+b") as file:
        file.seek(60)
        byte = file.read(1)
        file.seek(60)
        file.write(bytes([byte[0] ^ 1]))


def break_missing(bundle):
    (bundle / "prompt.onnx").unlink()


def break_manifest(bundle, change):
    manifest = json.loads((bundle / MANIFEST).read_text())
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def break_schema(bundle):
    break_manifest(bundle, lambda manifest: manifest.update(schema="2.0"))


def break_path(bundle):
    break_manifest(bundle, lambda m: m["pieces"]["encoder"].update(model="../encoder.onnx"))


def break_link(bundle):
    data = (bundle / "encoder.onnx").read_bytes()
    (bundle / "encoder.onnx").unlink()
    (bundle.parent / "secret").write_bytes(data[::-1])
    (bundle / "encoder.onnx").symlink_to(bundle.parent / "secret")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (break_byte, "decoder.onnx was changed"),
        (break_missing, "prompt.onnx is missing"),
        (break_schema, "schema version 2.0"),
        (break_path, "'../encoder.onnx' is not a plain path inside the bundle"),
        (break_link, "encoder.onnx was changed"),
        (shutil.rmtree, "does not exist"),
    ],
)
@pytest.mark.parametrize("command", ["enroll", "predict"])
def test_a_damaged_bundle(run, fake_bundle, supports, red_files, tmp_path, spoil, words, command):
    bundle = shutil.copytree(fake_bundle, tmp_path / "b" / "copy.uino")
    spoil(bundle)
    output = tmp_path / "out"
    if command == "enroll":
        code, out, err = enroll(run, bundle, output, ":".join(map(str, red_files)))
    else:
        code, out, err = predict(run, bundle, output, red_files[0], "--support", supports[0])
    assert (code, out) == (2, "")
    one_line(err, words)
    assert not output.exists()
    assert not left_over(tmp_path)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--backend", "tensorflow"], 2, "'--backend': 'tensorflow' is not one of 'onnxruntime'"),
        (["--provider", "gpu"], 2, "unknown provider 'gpu'"),
        (["--provider", "cuda"], 3, "has no CUDAExecutionProvider"),
        (["--threads", "0"], 2, "--threads"),
    ],
)
def test_backend_provider_and_threads_that_are_not_there(
    run, fake_bundle, supports, red_files, tmp_path, monkeypatch, options, code, words
):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    got, _, err = run(
        "predict", fake_bundle, red_files[0], "--support", supports[0],
        "-o", tmp_path / "out", *options,
    )  # fmt: skip
    assert got == code
    one_line(err, words)
    assert not (tmp_path / "out").exists()
    assert not left_over(tmp_path)


def test_onnxruntime_missing(run, fake_bundle, supports, red_files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = predict(
        run, fake_bundle, tmp_path / "out", red_files[0], "--support", supports[0]
    )
    assert code == 3
    one_line(err, "pip install -e '.[cpu]' in a checkout")


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "No space left on device"), 3)],
    ids=["ctrl-c", "disk-full"],
)
def test_what_happens_midway_leaves_nothing(
    run, fake_bundle, supports, red_files, tmp_path, monkeypatch, error, code
):
    done = []
    original = Image.Image.save

    def save(self, *args, **kwargs):
        done.append(args)
        if len(done) == 3:
            raise error
        original(self, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", save)
    before = sorted(tmp_path.iterdir())
    got, out, err = predict(
        run, fake_bundle, tmp_path / "out", *red_files, "--support", supports[0]
    )
    assert (got, out) == (code, "")
    assert err.strip().count("\n") == 0
    assert sorted(tmp_path.iterdir()) == before


def test_predict_replaces_only_its_own_output_and_only_by_force(
    run, fake_bundle, supports, red_files, tmp_path
):
    arguments = (fake_bundle, tmp_path / "out", red_files[0], "--support", supports[0])
    assert predict(run, *arguments)[0] == 0
    (tmp_path / "out" / "old.txt").write_text("stale")
    code, _, err = predict(run, *arguments)
    assert code == 2
    one_line(err, "exists", "--force")
    assert predict(run, *arguments, "--force")[0] == 0
    assert not (tmp_path / "out" / "old.txt").exists()

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("dear")
    code, _, err = predict(
        run, fake_bundle, tmp_path / "photos", red_files[0], "--support", supports[0], "--force"
    )
    assert code == 2
    one_line(err, "not this command's output")
    assert (tmp_path / "photos" / "me.jpg").read_text() == "dear"


def test_the_backends_offered_are_the_runtimes_and_the_model_itself():
    from uino_deploy.cli.predict import predict
    from uino_deploy.runtime.backends import BACKENDS

    (option,) = (option for option in predict.params if option.name == "backend")
    assert option.type.choices == (*BACKENDS, "torch")


def test_a_threshold_that_is_no_number_is_refused_before_any_work(
    run, fake_bundle, supports, red_files, tmp_path
):
    code, _, stderr = run(
        "predict", fake_bundle, red_files[0], "--support", supports[0],
        "--threshold", "nan", "-o", tmp_path / "found", "-q",
    )  # fmt: skip
    assert code == 2
    one_line(stderr, "threshold is nan")
    assert not (tmp_path / "found").exists()


def test_random_weights_are_told(run, fake_bundle, red_files, tmp_path):
    bundle = shutil.copytree(fake_bundle, tmp_path / "b.uino")
    manifest = Bundle.open(bundle).manifest
    provenance = msgspec.structs.replace(manifest.provenance, untrained=["encoder", "decoder"])
    write_manifest(bundle, msgspec.structs.replace(manifest, provenance=provenance))
    shot = ":".join(map(str, red_files))
    code, _, said = run("enroll", bundle, "--shot", shot, "--name", "r", "-o", tmp_path / "r", "-q")
    assert (code, said.count("\n")) == (0, 1)
    assert "holds random weights (encoder, decoder)" in said
    code, _, said = run(
        "predict", bundle, red_files[0], "--support", tmp_path / "r", "-o", tmp_path / "o", "-q"
    )
    assert code == 0
    assert "holds random weights (encoder, decoder)" in said


def test_a_missing_bundle_is_blamed_before_a_missing_input(run, tmp_path):
    code, _, stderr = run(
        "predict", tmp_path / "missing.uino", "x", "--support", "s", "-o", tmp_path / "o"
    )
    assert code == 2
    one_line(stderr, "missing.uino does not exist")


# --- presence and objects


@pytest.fixture
def pictures(red_files, tmp_path):
    """Return a folder with the red square and with a picture without it."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(red_files[0], folder / "red.png")
    Image.new("RGB", (80, 60), (20, 40, 200)).save(folder / "blue.png")
    return folder


def test_enroll_takes_negatives_and_predict_says_who_is_absent(
    run, fake_bundle, red_files, pictures, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # the table has room for short names
    negatives = tmp_path / "negatives"
    negatives.mkdir()
    Image.new("RGB", (30, 30), (20, 200, 40)).save(negatives / "green.png")
    shutil.copy(pictures / "blue.png", negatives)
    output = tmp_path / "red.safetensors"
    code, out, err = run(
        "enroll", fake_bundle, "--shot", ":".join(map(str, red_files)), "--name", "red",
        "--negative", negatives, "--negative", negatives / "green.png", "-o", output,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert out.startswith("red: 1 shot, 2 without it, ")
    code, out, _ = run("predict", fake_bundle, "pictures", "--support", output, "-o", "o")
    assert code == 0
    rows = [line.split()[1:3] for line in out.splitlines() if "pictures/" in line][:2]
    assert rows == [["red", "no"], ["red", "yes"]]
    lines = [json.loads(line) for line in (tmp_path / "o/results.jsonl").read_text().splitlines()]
    blue, red = (line["classes"][0] for line in lines)
    assert (blue["present"], blue["area"], blue["box"]) == (False, 0, None)
    assert (red["present"], red["area"] > 0) == (True, True)
    assert 0 <= blue["presence"] < 0.5 <= red["presence"] <= 1
    code, _, err = run("enroll", fake_bundle, "--shot", ":".join(map(str, red_files)), "--name",
                       "red", "--negative", tmp_path / "none", "-o", tmp_path / "x")  # fmt: skip
    assert code == 2
    one_line(err, "none")
    before = (negatives / "green.png").read_bytes()
    code, _, err = run(
        "enroll", fake_bundle, "--shot", ":".join(map(str, red_files)), "--name", "red",
        "--negative", negatives, "-o", negatives / "green.png", "--force",
    )  # fmt: skip
    assert code == 2
    one_line(err, "is also an input")
    assert (negatives / "green.png").read_bytes() == before


def test_a_support_of_before_is_called_uncalibrated(
    run, fake_bundle, red_square, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    old = tmp_path / "old.safetensors"
    Predictor.load(fake_bundle).enroll([red_square], "red", calibrated=False).save(old)
    Image.fromarray(red_square[0]).save(tmp_path / "a.png")
    code, out, err = run("predict", fake_bundle, "a.png", "--support", old, "-o", "o")
    assert code == 0
    assert "red: enrolled without a calibration" in err
    assert out.splitlines()[2].split()[:4] == ["a.png", "red", "-", "-"]
    (tmp_path / "b.png").write_bytes(b"no picture")
    code, _, err = run("predict", fake_bundle, "b.png", "--support", old, "-o", "p", "-q")
    assert code == 2
    one_line(err, "b.png cannot be read")


# pycocotools' arrays lack a keyword that numpy 2 needs.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_predict_writes_objects_that_cocos_tools_read(
    run, fake_bundle, supports, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("skimage")
    COCO = pytest.importorskip("pycocotools.coco").COCO

    image = np.full((60, 160, 3), (20, 40, 200), np.uint8)
    image[15:45, :40] = image[15:45, 120:] = (220, 30, 20)  # whole patches
    Image.fromarray(image).save(tmp_path / "two.png")
    code, out, _ = run(
        "predict", fake_bundle, "two.png", "--support", supports[0], "--instances", "-o", "o"
    )
    assert code == 0
    assert out.splitlines()[0].endswith("objects")
    (line,) = (tmp_path / "o/results.jsonl").read_text().splitlines()
    (found,) = json.loads(line)["classes"]
    with contextlib.redirect_stdout(None):
        coco = COCO(tmp_path / "o/instances.json")
    with Image.open(tmp_path / "o" / found["instance_labels"]) as opened:
        labels = np.asarray(opened)
    assert len(found["instances"]) == 2
    for number, (each, entry) in enumerate(
        zip(found["instances"], coco.loadAnns(coco.getAnnIds()), strict=True), 1
    ):
        np.testing.assert_array_equal(coco.annToMask(entry), labels == number)
        left, top, right, bottom = each["box"]
        assert entry["bbox"] == [left, top, right - left, bottom - top]
        assert entry["area"] == each["area"] == (labels == number).sum()
        assert coco.loadCats(entry["category_id"])[0]["name"] == "red"
    assert labels.any(axis=0)[80] == 0


def test_classes_whose_names_differ_only_in_unicode_form(
    run, fake_bundle, red_files, supports, tmp_path
):
    """macOS takes both forms for one folder."""
    given = []
    for number, name in enumerate(("Caf\u00e9", "Cafe\u0301")):
        given += ["--support", tmp_path / f"{number}.safetensors"]
        shot = ["--shot", ":".join(map(str, red_files)), "--name", name]
        assert run("enroll", fake_bundle, *shot, "-o", given[-1])[0] == 0
    code, _, err = predict(run, fake_bundle, tmp_path / "found", red_files[0], *given)
    assert code == 2
    one_line(err, "both hold a class named")


def test_an_empty_path_is_not_the_working_folder(run, fake_bundle, supports, tmp_path):
    code, _, err = predict(run, fake_bundle, tmp_path / "found", "", "--support", supports[0])
    assert code == 2
    one_line(err, "an input is empty")
    code, _, err = run("inspect", "")
    assert code == 2
    code, _, err = predict(run, fake_bundle, "", "x.png", "--support", supports[0])
    assert code == 2
    one_line(err, "the path is empty")
