"""`GET /openapi.json`: the API's description in OpenAPI 3.1, made from the table of routes and nothing else.

Request and answer types, handlers and problem codes come from the table, HTTP statuses from `problems`. The first
paragraph of a handler's docstring becomes the summary of its operation, the rest its description; the docstrings of
answer and body types become descriptions of their schemas. To change one is to change this document.
"""

from __future__ import annotations

import functools
import re
from inspect import getdoc
from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed import wire
from latticed.rpc import problems
from latticed.rpc.access import Scope
from latticed.rpc.responses import HealthReport

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from http import HTTPStatus

    from latticed.rpc.schemas import ApiRoute

ABOUT: Final = (
    "HTTP/1.1 on a unix socket. Who asks is told by the socket's peer credentials; `x-scope` names the scope that an "
    "operation takes. Some consents (host risk, hosts, a downgrade, a publisher) take the scope `host` besides."
)
"""The description at the top of the document."""
_REF: Final = "#/components/schemas/{name}"
_PROBLEM: Final = {"$ref": _REF.format(name="ProblemView")}
_ID: Final = r"^[a-z0-9][a-z0-9.-]{1,126}[a-z0-9]$"
"""As `model.ids.is_valid`, without its rule against `..`."""
_NAME: Final = r"^[^/\\\x00-\x1f\x7f-\x9f]+$"
_PARTS: Final = {
    "id": ("a plugin's id", {"type": "string", "pattern": _ID}),
    "bucket": ("a bucket: `default`, or `plugin:` and an id", {"type": "string", "pattern": _NAME, "maxLength": 256}),
    "key": ("a key of the bucket", {"type": "string", "pattern": _NAME, "maxLength": 256}),
    "name": ("a secret's name", {"type": "string", "pattern": "^[A-Z][A-Z0-9_]{0,63}$"}),
    "task": ("a task's id", {"type": "string", "pattern": "^[0-9a-f]{1,64}$"}),
    "sha": ("a plan's SHA-256", {"type": "string", "pattern": "^[0-9a-f]{64}$"}),
    "item": ("a notification's id", {"type": "string", "pattern": "^[0-9a-f]{32}$"}),
}
"""(description, schema) of each `{name}` in a path, by name."""


# Routes and version do not change while the daemon runs.
@functools.cache
def document(routes: tuple[ApiRoute, ...], version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `routes`, as JSON values; a KeyError for a code or path part without an entry."""
    kinds = [
        kind
        for route in routes
        for kind in (route.form.answer, route.form.body, route.form.query)
        if not isinstance(kind, str)
    ]
    wanted = [kind for kind in dict.fromkeys(kinds) if kind not in {None, bytes}]
    schemas, components = msgspec.json.schema_components([*wanted, wire.ProblemView], ref_template=_REF)
    # Not strict: the last schema is that of ProblemView, which is referred to by name.
    shapes = dict(zip(wanted, schemas, strict=False))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, shapes, components)
    for kind in {route.form.query for route in routes}:
        components.pop(kind.__name__, None)  # query types are described as parameters instead
    return {
        "openapi": "3.1.0",
        "info": {"title": "latticed", "version": version, "description": ABOUT},
        "servers": [{"url": "http://localhost", "description": "the control socket"}],
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(route: ApiRoute, shapes: Mapping[Any, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    """The operation object of one route."""
    # The docstring's first paragraph and the rest, as the module says.
    summary, _, more = (getdoc(route.handle) or "").partition("\n\n")
    operation: dict[str, Any] = {
        "operationId": "_".join([route.method.lower(), *re.findall(r"[a-z]+", route.path.removeprefix("/api"))]),
        "summary": " ".join(summary.split()),
        "x-scope": "none" if route.scope is Scope.NONE else str(route.scope.name).lower(),
        "parameters": [*_path_parameters(route), *_query_parameters(components.get(route.form.query.__name__, {}))],
        "responses": _responses(route, shapes),
    }
    if more:
        operation["description"] = more
    # An absent body is an empty one.
    if route.form.body is bytes:
        operation["requestBody"] = {"required": False, "content": {"application/octet-stream": {}}}
    elif route.form.body is not None:
        content = {"application/json": {"schema": shapes[route.form.body]}}
        operation["requestBody"] = {"required": False, "content": content}
    return operation


def _path_parameters(route: ApiRoute) -> Iterable[dict[str, Any]]:
    """The parameter objects of the parts in a route's path."""
    for name in re.findall(r"{(\w+)}", route.path):
        description, schema = _PARTS[name]
        yield {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _query_parameters(kind: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The parameter objects of a query type, from its JSON schema."""
    for name, schema in kind.get("properties", {}).items():
        yield {"name": name, "in": "query", "required": False, "schema": schema}


def _responses(route: ApiRoute, shapes: Mapping[Any, Any]) -> dict[str, Any]:
    """The answers of a route by status: 200, and one for each status of the problems that it may answer."""
    raw = isinstance(route.form.answer, str)
    content = {route.form.answer: {}} if raw else {"application/json": {"schema": shapes[route.form.answer]}}
    if route.form.also:
        content[route.form.also] = {}
    found: dict[str, Any] = {"200": {"description": "done", "content": content}}
    for status, codes in sorted(_problems(route).items()):
        about = ", ".join(f"`{code}`" for code in codes)
        schema = {"allOf": [_PROBLEM, {"properties": {"code": {"enum": list(codes)}}}]}
        found[str(int(status))] = {"description": about, "content": {wire.PROBLEM_TYPE: {"schema": schema}}}
    # The one route that answers with its own form, not a problem document, and another status than 200.
    if route.form.answer is HealthReport:
        found["503"] = {"description": "not well: `problems` says why", "content": content}
    return found


def _problems(route: ApiRoute) -> dict[HTTPStatus, list[str]]:
    """The codes that a route may answer with, by their status."""
    codes = ["bad_request", *route.form.codes]
    if route.scope is not Scope.NONE:
        codes += ["access_denied", "audit_unavailable"]  # audit_unavailable: a refusal that could not be recorded
    if route.form.body is not None:
        codes += ["request_timeout", "too_large"]
    by_status: dict[HTTPStatus, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(problems.STATUS_OF[code], []).append(code)
    return by_status
