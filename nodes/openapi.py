"""The routes as an OpenAPI 3.1 document, for clients that are written or tested by machine.

It says what may be sent; docs/routes.md says what each route does.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_REF = "#/components/schemas/{model}"
_JSON = "application/json"
_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "missing": {"type": "string", "enum": ["wordnet"]}},
    "required": ["error"],
}


@dataclass(frozen=True)
class Route:
    """A route below the prefix. body: what a POST takes; query: name -> JSON schema; answer: its media type."""

    method: str
    path: str
    handler: Handler
    body: type[BaseModel] | None = None
    query: dict[str, dict[str, Any]] = field(default_factory=dict)
    answer: str = _JSON

    def operation(self) -> dict[str, Any]:
        """Its OpenAPI operation object."""
        names = re.findall(r"{(\w+)}", self.path)
        operation: dict[str, Any] = {
            "operationId": f"{self.method.lower()}{re.sub(r'[^A-Za-z]+', '_', self.path).rstrip('_')}",
            "parameters": [
                *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names),
                *({"name": name, "in": "query", "schema": schema} for name, schema in self.query.items()),
            ],
            "responses": {
                "200": {"description": "Done.", "content": {self.answer: {}}},
                "default": {
                    "description": "Refused, with one sentence that says why.",
                    "content": {_JSON: {"schema": {"$ref": _REF.format(model="Error")}}},
                },
            },
        }
        if self.body:
            schema = {"$ref": _REF.format(model=self.body.__name__)}
            operation["requestBody"] = {"content": {_JSON: {"schema": schema}}}
        return operation


def document(routes: Iterable[Route], prefix: str) -> dict[str, Any]:
    """The OpenAPI document of `routes` below `prefix`."""
    routes = list(routes)
    bodies = {route.body: None for route in routes if route.body}
    _, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = route.operation()
    return {
        "openapi": "3.1.0",
        "info": {"title": "Erase Anything", "version": prefix.rsplit("/", 1)[-1]},
        "servers": [{"url": prefix}],
        "paths": paths,
        "components": {"schemas": {**schemas.get("$defs", {}), "Error": _ERROR}},
    }
