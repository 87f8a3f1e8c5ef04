"""The application without workers: what it says before it is ready, and of what it forbids."""

import asyncio
import json
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from tests.serving.client import form
from uino_deploy.bundle import Bundle
from uino_deploy.bundle.signature import VARIABLE
from uino_deploy.serving.app import PAGE, make_app
from uino_deploy.serving.library import Library
from uino_deploy.serving.settings import Settings


@pytest.fixture
def ask(fake_bundle, tmp_path):
    """Return a function that asks an application whose workers were not started."""
    settings = Settings(Path(fake_bundle), tmp_path / "classes", lambda path: None)
    app = make_app(Bundle.open(fake_bundle), settings, lambda error: None)

    def ask(method, path, body=b"", kind="image/png", sent=None):
        sent = [] if sent is None else sent

        came = [False]

        async def receive():
            if came.pop():
                await asyncio.Event().wait()  # the client stays
            came.append(True)
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        path, _, query = path.partition("?")
        headers = [(b"host", b"localhost"), (b"content-type", kind.encode())]
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode()}
        scope |= {"headers": headers, "root_path": "", "http_version": "1.1"}
        asyncio.run(app(scope, receive, send))
        data = b"".join(each.get("body", b"") for each in sent)
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], found, data

    return ask


def test_it_is_alive_before_it_is_ready(ask):
    assert ask("GET", "/health/live")[0] == 200
    status, headers, body = ask("GET", "/health/ready")
    assert (status, headers["retry-after"]) == (503, "1")
    assert json.loads(body) == {"error": "no worker is loaded yet"}
    assert b"uino_workers_ready 0.0" in ask("GET", "/metrics")[2]


def test_a_service_of_signed_classes_enrolls_none(ask, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "public.pem"))
    kind, body = form([("image", b"x"), ("mask", b"x")])
    status, _, told = ask("PUT", "/v1/classes/red", body, kind)
    assert status == 403
    assert b"signed classes alone" in told


def test_a_bug_is_told_without_its_details(ask, monkeypatch):
    def broken(self):
        raise ValueError("/a/secret/path")

    monkeypatch.setattr(Library, "names", broken)
    sent = []
    with pytest.raises(ValueError, match="secret"):  # for the log
        ask("GET", "/v1/classes", sent=sent)
    assert sent[0]["status"] == 500
    assert b"secret" not in sent[1]["body"]
    assert "unexpected ValueError" in json.loads(sent[1]["body"])["error"]


def test_the_page_takes_nothing_from_elsewhere(ask):
    status, headers, body = ask("GET", "/")
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert ask("GET", "/page/../app.py")[0] == 404
    for path in PAGE.iterdir():
        text = path.read_text("utf-8")
        assert "http://" not in text.replace("http://www.w3.org", "")
        assert "https://" not in text
        if path.name != "index.html":
            assert ask("GET", f"/page/{path.name}")[2].decode() == text
            assert path.name in body.decode()
