"""The OpenAPI document as one page without scripts: nothing is fetched from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
padding: 0 1rem; } code, pre { font-family: ui-monospace, monospace; } pre { overflow: auto; }
table { border-collapse: collapse; display: block; overflow: auto; } td, th { text-align: left;
padding: .2rem .8rem .2rem 0; vertical-align: top; } section { border-top: 1px solid #8888; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #eee; } a { color: #9cf; } }
"""


def docs_page(document: dict[str, Any]) -> str:
    """Return an OpenAPI document as HTML."""
    info = document["info"]
    operations = [
        _operation(method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    types = [
        f'<section id="{escape(name)}"><h3>{escape(name)}</h3>'
        f"<p>{escape(schema.get('description', ''))}</p>"
        f"<pre>{escape(json.dumps(schema.get('properties', {}), indent=2))}</pre></section>"
        for name, schema in document["components"]["schemas"].items()
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f"<p>{escape(info['description'])}</p>"
        '<p><a href="/openapi.json">The document itself</a>, <a href="/">a page to try it</a></p>'
        f"<h2>Requests</h2>{''.join(operations)}<h2>Types</h2>{''.join(types)}</html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        _row(
            each["name"],
            f"{each['in']}{', required' if each['required'] else ''}",
            each["description"],
            json.dumps(each["schema"]),
        )
        for each in operation.get("parameters", ())
    )
    bodies = "".join(
        _row(kind, ", ".join(body["schema"].get("properties", {"the picture itself": ""})))
        for kind, body in operation.get("requestBody", {}).get("content", {}).items()
    )
    answers = "".join(
        _row(status, answer["description"], _kind(answer))
        for status, answer in sorted(operation["responses"].items())
    )
    tables = [
        f"<h4>{title}</h4><table>{rows}</table>"
        for title, rows in (("Parameters", parameters), ("Body", bodies), ("Answers", answers))
        if rows
    ]
    return (
        f"<section><h3><code>{method} {escape(path)}</code></h3>"
        f"<p>{escape(operation['summary'])}</p>{''.join(tables)}</section>"
    )


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _kind(answer: dict[str, Any]) -> str:
    schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
    return str(schema.get("$ref", "")).rpartition("/")[2]
