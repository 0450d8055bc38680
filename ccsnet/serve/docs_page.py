"""The server's own document as a page, made here: it loads nothing, from here or elsewhere."""

from pathlib import Path
from typing import Any

import jinja2

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What a browser may load for the page. Source: Content Security Policy Level 3."""


def docs_page(document: dict[str, Any], base: str) -> str:
    """HTML of an OpenAPI document.

    Args:
        document: As `FastAPI.openapi` gives it.
        base: The server's address, as its reader knows it.
    """
    text = Path(__file__).with_name("docs.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True).from_string(text)
    routes = [
        {"method": method.upper(), "path": path, **_route(about, document)}
        for path, methods in document["paths"].items()
        for method, about in methods.items()
    ]
    return template.render(
        info=document["info"],
        base=base.rstrip("/"),
        token=any(route["closed"] for route in routes),
        routes=routes,
        schemas=_schemas(document),
    )


def _route(about: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    body = about.get("requestBody", {})
    return {
        "summary": about.get("summary", ""),
        "description": about.get("description", ""),
        "closed": bool(about.get("security")),
        "parameters": [
            {
                "name": parameter["name"],
                "values": ", ".join(parameter["schema"].get("enum", [])),
                "default": parameter["schema"].get("default", ""),
                "description": parameter.get("description", ""),
            }
            for parameter in about.get("parameters", [])
        ],
        "body": body.get("description", ""),
        "kinds": list(body.get("content", {})),
        "answers": [
            {
                "status": status,
                "description": answer["description"],
                "kinds": [
                    f"{kind} ({name})" if (name := _name(content)) else kind
                    for kind, content in answer.get("content", {}).items()
                ],
            }
            for status, answer in about["responses"].items()
        ],
    }


def _schemas(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "description": about.get("description", ""),
            "fields": [
                (field, _type(of), of.get("description", ""))
                for field, of in about.get("properties", {}).items()
            ],
        }
        for name, about in document.get("components", {}).get("schemas", {}).items()
    ]


def _name(content: dict[str, Any]) -> str:
    return content.get("schema", {}).get("$ref", "").rpartition("/")[2]


def _type(of: dict[str, Any]) -> str:
    """A field's type in few words."""
    if "$ref" in of:
        return of["$ref"].rpartition("/")[2]
    if "anyOf" in of:
        return " or ".join(_type(one) for one in of["anyOf"])
    if "enum" in of:
        return " or ".join(of["enum"])
    if of.get("type") == "array" and "items" in of:
        return f"list of {_type(of['items'])}"
    return of.get("type", "")
