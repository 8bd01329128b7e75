"""The OpenAPI document -> the page at /docs, with nothing to load from elsewhere."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any, Final

_PAGE: Final = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui;max-width:56rem;margin:2rem auto;padding:0 1rem}}
code,pre{{background:#8881;padding:.1em .3em}}pre{{padding:1em;overflow:auto}}</style>
<h1>{title}</h1><p>{description}</p>
<p>For tools: <a href="openapi.json">openapi.json</a></p>{body}"""


def docs_page(schema: Mapping[str, Any]) -> str:
    """The OpenAPI document as one HTML page, with nothing to load from elsewhere."""
    routes = "".join(
        f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
        f"<p>{escape(operation.get('summary', ''))}</p>{_bodies(operation)}"
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    )
    models = "".join(
        f"<details id={escape(name)}><summary><code>{escape(name)}</code></summary>"
        f"<pre>{escape(json.dumps(model, indent=2))}</pre></details>"
        for name, model in schema.get("components", {}).get("schemas", {}).items()
    )
    info = schema["info"]
    return _PAGE.format(
        title=escape(info["title"]),
        description=escape(info.get("description", "")),
        body=f"{routes}<h2>Models</h2>{models}",
    )


def _bodies(operation: Mapping[str, Any]) -> str:
    named = {"takes": operation.get("requestBody", {}), **operation["responses"]}
    rows = [
        f"<li>{escape(str(key))}: <a href='#{name}'><code>{name}</code></a></li>"
        for key, value in named.items()
        if (name := _model_name(value))
    ]
    return f"<ul>{''.join(rows)}</ul>"


def _model_name(body: Mapping[str, Any]) -> str:
    reference = body.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref")
    return escape(str(reference).rsplit("/", 1)[-1]) if reference else ""
