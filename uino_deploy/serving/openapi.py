"""The OpenAPI document, from the types of `uino_deploy.serving.messages`."""

from __future__ import annotations

from typing import Any

import msgspec

from uino_deploy import __version__
from uino_deploy.serving.messages import Class, Classes, Failure, Query, Segmented, State

Json = dict[str, Any]

_FILE = {"type": "string", "format": "binary"}
_FILES = {"type": "array", "items": _FILE}
_NAME: Json = {
    "name": "name",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "maxLength": 100},
    "description": "The class's name; it also names its file.",
}
_FAILURES = {
    400: "A picture, a name or a parameter is wrong.",
    401: "The token is missing or wrong.",
    404: "There is no such class.",
    408: "The body did not come before the deadline.",
    409: "The class's file is damaged or another model's.",
    413: "The body, or a picture, is too large.",
    415: "The body is of a type that is not read.",
    503: "Too many requests wait, or nothing is loaded yet; `Retry-After` says when to ask again.",
    504: "The deadline has passed.",
}


def openapi() -> Json:
    """Return the document, OpenAPI 3.1."""
    types = (Class, Classes, Failure, Query, Segmented, State)
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": name == "classes",
            "description": schema.pop("description"),
            "schema": schema,
        }
        for name, schema in schemas.pop("Query")["properties"].items()
    ]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "uino-deploy",
            "version": __version__,
            "description": "Few-shot segmentation: enroll a class from one or more images, and "
            'find it in others. Every error is JSON, `{"error": "one line"}`.',
        },
        "paths": _paths(parameters),
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _paths(parameters: list[Json]) -> Json:
    named = [_NAME]
    return {
        "/v1/segment": {
            "post": {
                "summary": "Segment classes in one image",
                "parameters": parameters,
                "requestBody": {
                    "required": True,
                    "content": {
                        "image/*": {"schema": _FILE},
                        "multipart/form-data": {
                            "schema": {
                                "type": "object",
                                "required": ["image"],
                                "properties": {"image": _FILE},
                            }
                        },
                    },
                },
                "responses": _responses(200, "The classes found.", "Segmented"),
            }
        },
        "/v1/classes": {
            "get": {
                "summary": "List the enrolled classes",
                "responses": _responses(200, "Their names.", "Classes", (401,)),
            }
        },
        "/v1/classes/{name}": {
            "put": {
                "summary": "Enroll a class, or replace it",
                "parameters": named,
                "requestBody": {
                    "required": True,
                    "content": {
                        "multipart/form-data": {
                            "schema": {
                                "type": "object",
                                "required": ["image", "mask"],
                                "properties": {"image": _FILES, "mask": _FILES, "negative": _FILES},
                            }
                        }
                    },
                },
                "responses": {
                    **_responses(201, "The class is enrolled.", "Class"),
                    **_responses(200, "The class is replaced.", "Class", ()),
                },
            },
            "get": {
                "summary": "Describe a class",
                "parameters": named,
                "responses": _responses(200, "The class.", "Class", (400, 401, 404, 409)),
            },
            "delete": {
                "summary": "Remove a class",
                "parameters": named,
                "responses": {
                    "204": {"description": "The class is removed."},
                    **_responses(400, _FAILURES[400], "Failure", (401, 404)),
                },
            },
        },
        "/health/live": {
            "get": {
                "summary": "Whether the process answers",
                "responses": _responses(200, "It does.", "State", ()),
            }
        },
        "/health/ready": {
            "get": {
                "summary": "Whether a worker is loaded",
                "responses": _responses(200, "One is.", "State", (503,)),
            }
        },
        "/metrics": {
            "get": {
                "summary": "Figures in Prometheus' text format",
                "responses": {
                    "200": {
                        "description": "The figures.",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    }
                },
            }
        },
    }


def _responses(status: int, what: str, kind: str, failures: Any = tuple(_FAILURES)) -> Json:
    return {
        str(status): {"description": what, "content": _content(kind)},
        **{
            str(each): {"description": _FAILURES[each], "content": _content("Failure")}
            for each in failures
        },
    }


def _content(kind: str) -> Json:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind}"}}}
