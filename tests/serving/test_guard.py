"""Who may ask, from where, and how slowly."""

import asyncio

import pytest
from click.testing import CliRunner

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from uino_deploy import cli
from uino_deploy.errors import InputError
from uino_deploy.serving.guard import Guard
from uino_deploy.serving.metrics import Metrics
from uino_deploy.serving.server import check_exposure, read_token
from uino_deploy.serving.settings import Limits

TOKEN = "0123456789abcdef0123"


def ask(
    path="/v1/classes", pieces=(b"",), slow=0.0, token=None, local=True, limits=None, **headers
):
    """Send a request through a guard; return the status and the body."""
    sent = []

    async def app(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def go():
        waiting = list(pieces)

        async def receive():
            await asyncio.sleep(slow)
            piece = waiting.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(waiting)}

        async def send(message):
            sent.append(message)

        given = {"host": "127.0.0.1:8000", **headers}
        pairs = [(name.encode(), value.encode()) for name, value in given.items()]
        scope = {"type": "http", "path": path, "method": "POST", "headers": pairs}
        guard = Guard(app, limits or Limits(), Metrics(), token, local)
        await guard(scope, receive, send)
        assert guard._held == 0

    asyncio.run(go())
    return sent[0]["status"], sent[1]["body"]


def test_a_token_is_asked_for_where_there_is_something_to_protect():
    assert ask(token=TOKEN)[0] == 401
    assert ask(token=TOKEN, authorization=f"Bearer {TOKEN}x")[0] == 401
    assert ask(token=TOKEN, authorization="Bearer £")[0] == 401
    assert ask(token=TOKEN, authorization=f"Bearer {TOKEN}")[0] == 200
    for path in ("/metrics", "/v1/segment", "/other", "/pagex"):
        assert ask(path, token=TOKEN)[0] == 401, path
    for path in ("/", "/page/app.js", "/docs", "/openapi.json", "/health/live"):
        assert ask(path, token=TOKEN)[0] == 200, path


def test_a_web_page_cannot_reach_a_service_of_this_machine():
    assert ask(host="localhost:8000")[0] == 200
    assert ask(host="[::1]:8000")[0] == 200
    assert ask(host="rebound.example")[0] == 421
    assert ask(host="[broken")[0] == 421
    assert ask(host="127.0.0.5:8000")[0] == 200
    assert ask(host="127.0.0.1.evil.example")[0] == 421
    assert ask(origin="http://[broken")[0] == 403
    assert ask(origin="http://127.0.0.1:8000")[0] == 200
    assert ask(origin="http://evil.example")[0] == 403
    assert ask(origin="null")[0] == 403
    assert ask(host="segment.example", local=False)[0] == 200


def test_bodies_are_limited_in_size_together_and_in_time():
    limits = Limits(body=10, deadline=0.3)
    assert ask(pieces=[b"12345", b"67890"], limits=limits) == (200, b"1234567890")
    assert ask(pieces=[b"12345", b"678901"], limits=limits)[0] == 413
    assert ask(limits=limits, **{"content-length": "11"})[0] == 413
    status, told = ask(pieces=[b"x"] * 10, slow=0.1, limits=limits)
    assert status == 408
    assert b"did not come within 0.3 s" in told


def test_all_bodies_together_are_limited():
    class Small(Limits):
        held = 12

    assert ask(pieces=[b"123456", b"7890123"], limits=Small())[0] == 503


def test_only_loopback_goes_without_a_token():
    for host in ("127.0.0.1", "localhost", "::1", "127.3.2.1"):
        check_exposure(host, None, False)
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(InputError, match="reached from other machines"):
            check_exposure(host, None, False)
        check_exposure(host, TOKEN, False)
        check_exposure(host, None, True)


@pytest.mark.parametrize("text", ["", "short", "two words of some length", "ü" * 20, "x" * 5000])
def test_a_token_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "token").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="token"):
        read_token(tmp_path / "token")


def test_a_token_is_read_without_its_line_break(tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN


def test_the_command_refuses_an_open_door_in_one_line(fake_bundle, tmp_path):
    classes = tmp_path / "classes"
    asked = ["serve", str(fake_bundle), "--classes", str(classes), "--host", "0.0.0.0"]
    done = CliRunner().invoke(cli.cli, asked)
    assert isinstance(done.exception, InputError)
    assert "--token-file" in str(done.exception)
    assert not classes.exists()
