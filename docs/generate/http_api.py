"""docs/reference/http-api.md: routes with scope, parameters, bodies and answers, from the table that routes."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

from generate import codes, shapes, source
from generate.markdown import Page, anchored, code, plain, sentence, slug
from latticed import wire
from latticed.rpc import access, openapi, routes
from latticed.rpc.access import Scope
from latticed.rpc.api import QueryParams

if TYPE_CHECKING:
    from latticed.rpc.schemas import ApiRoute

GROUPS = {
    "api/health": "State",
    "api/status": "State",
    "metrics": "State",
    "openapi.json": "State",
    "api/plugins": "Plugins",
    "api/audit": "Record and events",
    "api/events": "Record and events",
    "api/kv": "Values and secrets",
    "api/secrets": "Values and secrets",
    "api/notifications": "Notifications",
    "api/tasks": "Tasks and plans",
    "api/plans": "Tasks and plans",
    "api/market": "Marketplace",
    "api/ddns": "What goes on for plugins",
    "api/monitors": "What goes on for plugins",
    "api/services": "What goes on for plugins",
    "api/routes": "What goes on for plugins",
    "api/backup": "Backup and trust",
    "api/trust": "Backup and trust",
}


def scope(route: ApiRoute) -> str:
    """The word for the scope of a route."""
    return "none" if route.scope is Scope.NONE else str(route.scope.name).lower()


def anchor(route: ApiRoute) -> str:
    """Where a route stands on the page."""
    return slug(route.method, route.path)


def page() -> str:
    """The page."""
    found = Page(
        "Control API",
        "HTTP/1.1 and JSON on the unix socket `control.sock` in the runtime directory; who asks is told by the kernel."
        " latticectl is one client; anything that speaks HTTP over a unix socket is another:",
    )
    found.block(
        "text",
        'curl --unix-socket "$LATTICED_SOCKET" http://localhost/api/plugins\n'
        'curl --unix-socket "$LATTICED_SOCKET" --json \'{"id": "acme.demo", "status": "installed"}\' \\\n'
        "  http://localhost/api/plugins/lifecycle",
    )
    found.text(
        "Times are RFC 3339 in UTC, absent values are left out, no answer has a local path. Lists come in pages:"
        " `next` is the `after` of the following page, null on the last. An error is a problem document (RFC 9457,"
        " `application/problem+json`) with a stable [`code`](codes.md#api-codes). Unknown fields and duplicate keys"
        " are `bad_request`; a body has at most 1 MiB. `GET /openapi.json` answers the same as OpenAPI 3.1."
    )
    found.heading("Scopes", anchor="scopes")
    said = source.below(access.Scope)
    found.table(
        ("scope", "lets somebody"),
        [(anchored(slug("scope", word), code(word)), said[word.upper()]) for word in access.BY_WORD],
    )
    found.text(
        "`none` needs no scope, `all` needs every one. Root has all; the settings"
        " [`[access]`](settings.md#settings-access)"
        " give them to others. Consent to host risk, hosts, a downgrade or another publisher needs `host` besides."
    )
    by_group: dict[str, list[ApiRoute]] = {}
    for route in routes.ROUTES:
        by_group.setdefault(_group(route), []).append(route)
    found.heading("Routes", anchor="routes")
    found.table(
        ("route", "scope", "what it does"),
        [
            (f"[`{route.method} {route.path}`](#{anchor(route)})", scope(route), sentence(_summary(route)[0]))
            for group in by_group.values()
            for route in group
        ],
    )
    used: dict[str, type] = {}

    def link(shape: type) -> str:
        used.setdefault(shape.__name__, shape)
        return f"[{shape.__name__}](#{slug('shape', shape.__name__)})"

    for group, those in by_group.items():
        found.heading(group, anchor=slug("routes", group))
        for route in those:
            _route(found, route, link)
    _shapes(found, used, link)
    return str(found)


def _group(route: ApiRoute) -> str:
    return next(group for start, group in GROUPS.items() if route.path.startswith(f"/{start}"))


def _summary(route: ApiRoute) -> tuple[str, str]:
    first, _, more = (inspect.getdoc(route.handle) or "").partition("\n\n")
    return plain(first), plain(more)


def _route(found: Page, route: ApiRoute, link: Any) -> None:
    found.heading(f"{route.method} {route.path}", level=3, anchor=anchor(route))
    summary, more = _summary(route)
    found.text(sentence(summary), *([sentence(more)] if more else []))
    found.text(
        f"Scope: {scope(route) if scope(route) in {'none', 'all'} else f'[{scope(route)}](#scope-{scope(route)})'}."
    )
    parts = [(code(name), "path", f"{openapi._PARTS[name][0]}") for name in re.findall(r"{(\w+)}", route.path)]
    if route.form.query is not QueryParams:
        parts += [(code(one.name), "query", _said(one)) for one in shapes.fields(route.form.query, link)]
        about = shapes.about(route.form.query)
        if about:
            found.text(sentence(about))
    if parts:
        found.table(("parameter", "in", "what it is"), parts)
    if route.form.body is bytes:
        found.text("Body: bytes, as they are.")
    elif route.form.body is not None:
        found.text(f"Body: {link(route.form.body)}.")
    answer = route.form.answer
    shown = code(answer) if isinstance(answer, str) else shapes.kind(answer, link)
    found.text(f"Answer: {shown}{f', or `{route.form.also}`' if route.form.also else ''}.")
    told = [one for names in openapi._problems(route).values() for one in names]
    verdicts = [one for one in told if one in codes.tables()["verdict"]]
    others = [one for one in told if one not in verdicts]
    words = ", ".join(f"[`{one}`](codes.md#{codes.anchor(one)})" for one in others)
    found.text(f"Codes: {words}{', and any [verdict](codes.md#verdicts)' if verdicts else ''}.")


def _said(one: shapes.Field) -> str:
    """What a query parameter is, in one cell."""
    default = f", default `{one.default}`" if one.default else ""
    return f"{one.kind}{default}{f'. {one.meaning}' if one.meaning else ''}"


def _shapes(found: Page, used: dict[str, type], link: Any) -> None:
    link(wire.ProblemView)
    found.heading("Shapes", anchor="shapes")
    found.text("Of bodies and answers, as JSON objects.")
    done: set[str] = set()
    while left := sorted(set(used) - done):
        for name in left:
            done.add(name)
            shape = used[name]
            found.heading(name, level=3, anchor=slug("shape", name))
            if about := shapes.about(shape):
                found.text(sentence(about))
            body = any(route.form.body is shape for route in routes.ROUTES)
            titles = ("field", "type", "default" if body else "when", "meaning")
            if table := shapes.rows(shape, link, given=body):
                found.table(titles, table)
            else:
                found.text("No fields.")
