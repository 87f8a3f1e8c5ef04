"""A small HTTP client of the service, for tests and for load.

Paths, parts and errors are those of the service's own OpenAPI document; a form is
multipart/form-data as RFC 7578 has it and browsers and curl send it.
"""

import http.client
import json
import uuid
from typing import NamedTuple


class Reply(NamedTuple):
    """A status, the headers in lower case, and the body."""

    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        """The one line of an error."""
        (line,) = self.json.values()
        assert "\n" not in line
        return line


class Client:
    """One kept connection."""

    def __init__(self, address, token=None):
        self.address, self.token = address, token
        self.connection = http.client.HTTPConnection(address, timeout=60)

    def __del__(self):
        self.connection.close()

    def ask(self, method, path, body=None, kind=None, **headers):
        headers |= {"Content-Type": kind} if kind else {}
        headers |= {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            self.connection.request(method, path, body, headers)
            answer = self.connection.getresponse()
        except http.client.RemoteDisconnected:  # it kept the connection too long
            self.connection.close()
            self.connection.request(method, path, body, headers)
            answer = self.connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found, answer.read())

    def enroll(self, name, *parts):
        """Enroll a class; `parts` are (part, bytes)."""
        kind, body = form(parts)
        return self.ask("PUT", f"/v1/classes/{name}", body, kind)

    def segment(self, image, query):
        return self.ask("POST", f"/v1/segment?{query}", image, "image/png")


def form(parts):
    """Return the type and the bytes of a form with files: (part, bytes) each."""
    edge = uuid.uuid4().hex
    body = b"".join(
        f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n'
        f"Content-Type: image/png\r\n\r\n".encode()
        + data
        + b"\r\n"
        for name, data in parts
    )
    return f"multipart/form-data; boundary={edge}", body + f"--{edge}--\r\n".encode()
