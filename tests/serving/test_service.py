"""A service in a process of its own: it finds what the predictor finds, and refuses the rest."""

import base64
import io
import json
import os
import signal
import socket
import struct
import threading
import time
import zlib

import jsonschema
import numpy as np
import pytest
from PIL import Image

from tests.serving.client import form
from tests.serving.conftest import served
from uino_deploy.images import load_image
from uino_deploy.images.coco_file import mask_of_runs
from uino_deploy.images.opening import Received
from uino_deploy.runtime import Predictor, Support


def png(array):
    written = io.BytesIO()
    Image.fromarray(array).save(written, "PNG")
    return written.getvalue()


def bomb(side):
    """Return a PNG that says it is a square of this side, and holds next to nothing."""

    def chunk(kind, data):
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(bytes(9))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture
def shot(red_square):
    image, mask = red_square
    return ("image", png(image)), ("mask", png(mask * 255))


@pytest.fixture
def client(service, shot):
    """Return a client of a service where `red` is enrolled."""
    client = service.client()
    assert client.enroll("red", *shot).status in {200, 201}
    return client


def test_a_class_is_enrolled_found_and_removed(service, client, shot, fake_bundle):
    assert client.enroll("blue", *shot).status == 201
    assert client.enroll("blue", *shot).status == 200, "replaced"
    assert client.ask("GET", "/v1/classes").json == {"classes": ["blue", "red"]}
    assert client.ask("GET", "/v1/classes/blue").json["shots"] == 1
    image = shot[0][1]
    found = client.segment(image, "classes=red,blue&masks=rle&instances=true").json
    predictor = Predictor.load(fake_bundle)
    support = Support.load(service.classes / "red.safetensors")
    expected = predictor.predict(load_image(Received(image, "image")), support)
    red = found["classes"][0]
    assert [each["name"] for each in found["classes"]] == ["red", "blue"]
    assert red["present"] is expected.present
    assert red["presence"] == pytest.approx(expected.presence, abs=1e-5)
    assert (mask_of_runs(red["rle"]["counts"], *red["rle"]["size"]) == expected.mask).all()
    (thing,) = red["instances"]
    assert thing["area"] == expected.mask.sum()
    assert client.ask("DELETE", "/v1/classes/blue").status == 204
    gone = client.ask("DELETE", "/v1/classes/blue")
    assert (gone.status, gone.error) == (404, "no class 'blue'; enrolled: red")


def test_masks_come_as_outlines_and_as_a_label_map(client, shot):
    image = shot[0][1]
    rle = client.segment(image, "classes=red").json["classes"][0]["rle"]
    mask = mask_of_runs(rle["counts"], *rle["size"])
    (outline,) = client.segment(image, "classes=red&masks=polygons").json["classes"][0]["polygons"]
    xs, ys = outline[::2], outline[1::2]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert (min(xs), max(xs)) == (columns[0], columns[-1] + 1)
    assert (min(ys), max(ys)) == (rows[0], rows[-1] + 1)
    written = client.segment(image, "classes=red&masks=png").json["label_map"]
    labels = np.asarray(Image.open(io.BytesIO(base64.b64decode(written))))
    assert (labels == mask).all()
    assert "rle" not in client.segment(image, "classes=red&masks=none").json["classes"][0]
    kind, body = form([("image", image)])
    assert (
        client.ask("POST", "/v1/segment?classes=red", body, kind).json["classes"][0]["rle"] == rle
    )


def test_a_file_put_into_the_folder_is_served_and_a_damaged_one_is_refused(service, client, shot):
    whole = (service.classes / "red.safetensors").read_bytes()
    (service.classes / "copy.safetensors").write_bytes(whole)
    (service.classes / "bad.safetensors").write_bytes(whole[:-9])
    copied = client.segment(shot[0][1], "classes=copy")
    assert copied.status == 409
    assert "holds a class named 'red'" in copied.error
    damaged = client.segment(shot[0][1], "classes=bad")
    assert damaged.status == 409
    assert str(service.classes) not in damaged.error
    for name in ("copy", "bad"):
        assert client.ask("DELETE", f"/v1/classes/{name}").status == 204


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e", "a%2Fb", "a%5Cb", "..%2F..%2Fx", "a%00b", ".x", "con", "a,b", "x" * 300],
)
def test_no_name_leads_out_of_the_folder(service, client, shot, name):
    before = set(service.classes.parent.rglob("*"))
    for method in ("PUT", "GET", "DELETE"):
        kind, body = form(shot)
        asked = client.ask(method, f"/v1/classes/{name}", body, kind)
        assert asked.status in {400, 404}, (method, asked)
        assert asked.error
    assert set(service.classes.parent.rglob("*")) == before


def test_bad_requests_are_told_in_one_line(client, shot, red_square):
    image, mask = shot
    huge = png(np.zeros((400, 300, 3), np.uint8))
    empty = png(np.zeros_like(red_square[1]))
    asked = {
        "no class": (client.segment(image[1], ""), 400, "no class is named"),
        "unknown": (client.segment(image[1], "classes=none"), 404, "enrolled: red"),
        "many": (client.segment(image[1], "classes=a,b,c,d"), 400, "at most 3"),
        "twice": (client.segment(image[1], "classes=red,red"), 400, "named twice"),
        "parameter": (client.segment(image[1], "classes=red&x=1"), 400, "unknown field `x`"),
        "threshold": (client.segment(image[1], "classes=red&threshold=nan"), 400, "finite"),
        "min_score": (client.segment(image[1], "classes=red&min_score=2"), 400, "0 to 1"),
        "form": (client.segment(image[1], "classes=red&masks=svg"), 400, "svg"),
        "no image": (client.segment(b"", "classes=red"), 400, "empty"),
        "text": (client.segment(b"hello", "classes=red"), 400, "not an image"),
        "half": (client.segment(image[1][:150], "classes=red"), 400, "cannot be read"),
        "huge": (client.segment(huge, "classes=red"), 413, "more than 100000 pixels"),
        "bomb": (client.segment(bomb(30_000), "classes=red"), 413, "more than 100000 pixels"),
        "name": (client.enroll("x", image, ("mask", b"x")), 400, "mask 1 (a.png) cannot be read"),
        "type": (
            client.ask("POST", "/v1/segment?classes=red", b"{}", "text/json"),
            415,
            "text/json",
        ),
        "no mask": (client.enroll("x", image), 400, "0 files in 'mask'"),
        "no pair": (client.enroll("x", image, image, mask), 400, "2 images and 1 masks"),
        "part": (client.enroll("x", image, mask, ("other", b"")), 400, "no part is called 'other'"),
        "blank": (client.enroll("x", image, ("mask", empty)), 400, "the mask is empty"),
        "path": (client.ask("GET", "/v2"), 404, "/docs"),
        "method": (client.ask("POST", "/v1/classes"), 405, "POST is not for"),
        "host": (client.ask("GET", "/v1/classes", Host="evil.example"), 421, "evil.example"),
        "page": (client.ask("GET", "/v1/classes", Origin="http://evil.example"), 403, "may not"),
    }
    for what, (reply, status, told) in asked.items():
        assert reply.status == status, (what, reply)
        assert told in reply.error, (what, reply)
    assert client.ask("GET", "/v1/classes").json == {"classes": ["red"]}


def test_a_body_that_is_too_large_is_refused_before_it_comes(service):
    with socket.create_connection(service.address.split(":")) as raw:
        raw.sendall(
            b"POST /v1/segment?classes=red HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: image/png\r\nContent-Length: 999999999\r\n\r\n"
        )
        assert raw.recv(64).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(service.address.split(":")) as raw:
        raw.sendall(
            b"POST /v1/segment?classes=red HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
            + 5
            * (b"10000\r\n" + bytes(0x10000) + b"\r\n")
        )
        assert raw.recv(64).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(service.address.split(":")) as raw:
        raw.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        assert b'{"error":"this is not HTTP' in raw.recv(999)


def test_a_killed_worker_is_replaced_and_its_requests_are_answered(service, client, shot):
    image = shot[0][1]
    expected = client.segment(image, "classes=red").json["classes"]
    replies = []

    def many():
        mine = service.client()
        replies.extend(mine.segment(image, "classes=red") for _ in range(15))

    asking = [threading.Thread(target=many) for _ in range(4)]
    for each in asking:
        each.start()
    (first,) = service.workers()
    os.kill(first, signal.SIGKILL)
    for each in asking:
        each.join()
    assert [reply.status for reply in replies] == [200] * 60
    assert all(reply.json["classes"] == expected for reply in replies)
    (second,) = service.workers()
    assert second != first
    assert b"uino_workers_replaced_total 1.0" in client.ask("GET", "/metrics").body


def test_the_description_has_every_route_and_answers_fit_it(client, shot):
    document = client.ask("GET", "/openapi.json").json
    asked = {
        "Segmented": client.segment(shot[0][1], "classes=red&masks=polygons&instances=true"),
        "Class": client.ask("GET", "/v1/classes/red"),
        "Classes": client.ask("GET", "/v1/classes"),
        "Failure": client.ask("GET", "/v1/classes/none"),
        "State": client.ask("GET", "/health/live"),
    }
    for name, reply in asked.items():
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(reply.json)
    for path, methods in document["paths"].items():
        for method in methods:
            reply = client.ask(method.upper(), path.replace("{name}", "none"))
            assert reply.status not in {405, 500}, (method, path)
            known = methods[method]["responses"]
            assert str(reply.status) in known, (method, path, reply.status)
    page = client.ask("GET", "/docs").body.decode()
    assert "PUT /v1/classes/{name}" in page
    assert "//" not in page.replace("http://", ""), "nothing from elsewhere"


def test_a_service_drains_when_it_is_told_to_stop(fake_bundle, tmp_path, shot):
    with served(fake_bundle, tmp_path / "classes", "--threads", "1") as running:
        client = running.wait_until_ready().client()
        assert client.enroll("red", *shot).status == 201
        host, port = running.address.split(":")
        image = shot[0][1]
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(
                b"POST /v1/segment?classes=red HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(image)
            )
            time.sleep(0.3)  # the service has read the head
            workers = running.workers()
            running.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            raw.sendall(image)
            answer = raw.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["classes"][0]["name"] == "red"
        assert running.process.wait(30) == 143
        with pytest.raises(ProcessLookupError):
            os.kill(workers[0], 0)
