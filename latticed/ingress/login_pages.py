"""The login and logout pages of proxied services: no scripts, no external resources, not to be framed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import urllib.parse
from typing import TYPE_CHECKING, Final

from latticed.ingress import answers, forwarding, request_target, same_origin
from latticed.ingress.answers import IngressAnswer
from latticed.ingress.sessions import LIFE_S
from latticed.ingress.upstream_connection import SESSION_COOKIES
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from latticed.host.route.targets import Proxied
    from latticed.ingress.sessions import Sessions

OWN_PREFIX: Final = "/.latticed/"
"""Paths of the listener itself; no service gets requests below it."""
LOGIN: Final = f"{OWN_PREFIX}login"
LOGOUT: Final = f"{OWN_PREFIX}logout"
CHALLENGE: Final = f'Cookie form-action="{LOGIN}"'
"""Of a 401, which has to have one (RFC 9110, section 15.5.2). No scheme is registered for a login by form. This one
says where the form is, and no client knows it: for `Basic` browsers would ask for a password of their own accord.
"""
MAX_FORM_BYTES: Final = 16 << 10
"""Of a form's body: a path and a password."""
FORM_S: Final = 5.0
"""Seconds within which the whole form must have come."""

_STYLE: Final = (
    "body{font:1rem/1.5 sans-serif;max-width:22rem;margin:15vh auto;padding:0 1rem}"
    "input,button{font:inherit;box-sizing:border-box;width:100%;padding:.4rem;margin:.3rem 0}"
    ".wrong{color:#b00020}"
)
# The policy allows this one style by its hash (CSP Level 3, hash-source), so that nothing else can add one.
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
# Without `sandbox`, which the other answers have: it would forbid to send the form.
_POLICY: Final = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; frame-ancestors 'none'"
_PAGE: Final = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    "<title>{title}</title><style>" + _STYLE.replace("{", "{{").replace("}", "}}") + "</style>"
    '<h1>{title}</h1>{said}<form method="post" action="{action}"><input type="hidden" name="to" value="{to}">{fields}'
    "</form></html>"
)
_LOGIN_FIELDS: Final = (
    '<label>Password<input type="password" name="password" autocomplete="current-password" required autofocus></label>'
    "<button>Log in</button>"
)


class LoginPages:
    """Serves the pages below OWN_PREFIX. `find(path)`: the proxied service that a decoded path belongs to, or None."""

    def __init__(self, sessions: Sessions, find: Callable[[str], Proxied | None]) -> None:
        self._sessions = sessions
        self._find = find

    def sent_to(self, request: web.BaseRequest, raw: str) -> IngressAnswer:
        """The answer to a request without a session: browsers are redirected to the login page, other clients get 401.

        `raw`: path and query as they were asked for, percent-encoded; after the login the browser is sent there.
        """
        is_page = request.method in {"GET", "HEAD"} and "text/html" in request.headers.get("Accept", "")
        if not is_page:
            problem = Problem("login_required", f"expected somebody who has logged in at {LOGIN}")
            return answers.of_problem(problem, ("WWW-Authenticate", CHALLENGE))
        return _redirect(f"{LOGIN}?to={urllib.parse.quote(raw, safe='/')}")

    async def answer(self, request: web.BaseRequest, asked: request_target.RequestTarget, host: str) -> IngressAnswer:
        """The answer to a request below OWN_PREFIX. `asked` is its parsed target, `host` its checked Host.

        Problem not_found, bad_request, request_too_large, origin_not_allowed, service_unavailable.
        """
        # Pages first, by GET; only POST logs in or out, so that no link and no image can.
        if asked.path not in {LOGIN, LOGOUT}:
            raise Problem("not_found", "there is no such page")
        if request.method not in {"GET", "HEAD", "POST"}:
            problem = Problem("method_not_allowed", "expected one of GET, HEAD, POST")
            return answers.of_problem(problem, ("Allow", "GET, HEAD, POST"))
        if request.method != "POST":
            return self._page(asked.path, dict(asked.query).get("to", ""))
        # Before the form is read: a page of another site must not log a browser in or out.
        same_origin.check(request.method, host, request.headers)
        form = await _form(request)
        cookies = forwarding.session_ids(request.headers.getall("Cookie", []))
        # `check` has made sure that there is an Origin, and that it is ours.
        secure = same_origin.is_secure(request.headers.get("Origin"))
        target, to = self._target(form.get("to", ""))
        if asked.path == LOGOUT:
            self._sessions.leave(cookies)
            return _redirect(f"{LOGIN}?to={urllib.parse.quote(to, safe='/')}", _gone(secure=secure))
        try:
            made = await self._sessions.enter(target, form.get("password", ""), cookies, secure=secure)
        except Problem as problem:
            # The visitor can try again after these two: the form is shown again.
            if problem.code not in {"login_failed", "login_throttled"}:
                raise
            return _page(LOGIN, "Log in", to, _LOGIN_FIELDS, problem)
        return _redirect(to, _cookie(made, secure=secure))

    def _page(self, place: str, said: str) -> IngressAnswer:
        """The form to log in or out, for the service at `said`; Problem not_found."""
        _, to = self._target(said)
        if place == LOGOUT:
            return _page(LOGOUT, "Log out", to, "<button>Log out</button>")
        return _page(LOGIN, "Log in", to, _LOGIN_FIELDS)

    def _target(self, to: str) -> tuple[Proxied, str]:
        """The service at `to`, which must have a login, and its path; Problem not_found."""
        # `to` comes from a link: `//host`, and `/\host` in browsers, would lead to another site after the login.
        if not to.startswith("/") or to.startswith("//") or not to.isascii() or not to.isprintable() or "\\" in to:
            raise Problem("not_found", "there is no such service")
        target = self._find(request_target.parse(to).path)
        if target is None or not target.login or not target.live():
            raise Problem("not_found", "there is no such service")
        return target, to


async def _form(request: web.BaseRequest) -> dict[str, str]:
    """The fields of a form; of a repeated name the last. Problem bad_request, request_too_large."""
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Problem("bad_request", "expected a form")
    received = bytearray()
    try:
        async with asyncio.timeout(FORM_S):
            async for chunk in request.content.iter_any():
                received += chunk
                if len(received) > MAX_FORM_BYTES:
                    raise Problem("request_too_large", f"expected a form of at most {MAX_FORM_BYTES} bytes")
    except TimeoutError as error:
        raise Problem("bad_request", "expected the whole form in time") from error
    try:
        # A form is percent-encoded ASCII; its decoded bytes must be UTF-8 (`errors`).
        return dict(urllib.parse.parse_qsl(received.decode("ascii"), errors="strict", max_num_fields=8))
    except ValueError as error:
        raise Problem("bad_request", "expected a form in UTF-8") from error


def _page(action: str, title: str, to: str, fields: str, problem: Problem | None = None) -> IngressAnswer:
    """An HTML page with one form. `fields` is HTML; everything else is escaped here, or constant."""
    said = f'<p class="wrong">{html.escape(problem.reason)}</p>' if problem else ""
    page = _PAGE.format(title=title, said=said, action=action, to=html.escape(to, quote=True), fields=fields)
    status = answers.STATUS_OF[problem.code] if problem else 200
    # Besides `frame-ancestors`, for browsers that only know the older header (RFC 7034).
    more = [("X-Frame-Options", "DENY"), ("Referrer-Policy", "same-origin")]
    # The hint of this Problem is a number of seconds, see `Sessions.enter`.
    if problem is not None and problem.code == "login_throttled":
        more.append(("Retry-After", problem.hint))
    return IngressAnswer(
        page.encode(), "text/html; charset=utf-8", status=int(status), more=tuple(more), policy=_POLICY
    )


def _redirect(to: str, *more: tuple[str, str]) -> IngressAnswer:
    """303: the browser gets `to` with GET, also after a POST (RFC 9110, section 15.4.4). `to` is encoded."""
    return IngressAnswer(b"", "text/plain; charset=utf-8", status=303, more=(("Location", to), *more))


def _cookie(made: str, *, secure: bool) -> tuple[str, str]:
    """The header (name, value) that sets the cookie of a new session, for the whole listener. Without Domain it is sent
    to this host alone.
    """
    name = SESSION_COOKIES[0] if secure else SESSION_COOKIES[1]
    parts = [f"{name}={made}", "Path=/", f"Max-Age={int(LIFE_S)}", "HttpOnly", "SameSite=Strict"]
    return "Set-Cookie", "; ".join([*parts, "Secure"] if secure else parts)


def _gone(*, secure: bool) -> tuple[str, str]:
    """Set-Cookie that removes the session's cookie: browsers find it by name and Path (RFC 6265, section 5.3)."""
    name, value = _cookie("", secure=secure)
    return name, value.replace(f"Max-Age={int(LIFE_S)}", "Max-Age=0")
