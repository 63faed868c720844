"""Problem documents (RFC 9457): every error that leaves the control API, and its HTTP status."""

from __future__ import annotations

import json
from dataclasses import replace
from http import HTTPStatus
from typing import Final

from aiohttp import web

from latticed import wire
from latticed.model.errors import Problem
from latticed.model.verdict import Code
from latticed.runners import configuration
from latticed.runners.configuration import ConfigInvalid

OF_PLUGINS: Final = (
    "plugin_gone",
    "plugin_error",
    "protocol_error",
    "message_too_large",
    "answers_unread",
    "output_too_large",
    "too_many_host_calls",
    "cpu_exceeded",
    "wasm_invalid",
    "wasm_import",
    "wasm_trap",
    "wasm_code",
    "wasm_host",
    "wasm_compiler",
    "stack_overflow",
    "fuel_exhausted",
    "out_of_memory",
    "file_too_large",
    "forbidden_call",
    "crashed",
    "killed",
    "exited",
)
"""Codes of what a plugin did instead of replying: 502, as a gateway answers for its upstream."""

STATUS_OF: Final = {
    "bad_request": HTTPStatus.BAD_REQUEST,
    "access_denied": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "request_timeout": HTTPStatus.REQUEST_TIMEOUT,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "invalid_transition": HTTPStatus.CONFLICT,
    "not_available": HTTPStatus.CONFLICT,
    "dependency_unmet": HTTPStatus.CONFLICT,
    "version_downgrade": HTTPStatus.CONFLICT,
    "no_candidate": HTTPStatus.CONFLICT,
    "identity_mismatch": HTTPStatus.CONFLICT,
    "candidate_bad": HTTPStatus.CONFLICT,
    "needs_consent": HTTPStatus.CONFLICT,
    "needs_config": HTTPStatus.CONFLICT,
    "config_invalid": HTTPStatus.UNPROCESSABLE_ENTITY,
    "metadata_origin": HTTPStatus.CONFLICT,
    "still_revoked": HTTPStatus.CONFLICT,
    "not_armed": HTTPStatus.CONFLICT,
    "quota_exceeded": HTTPStatus.CONFLICT,
    "secret_bound": HTTPStatus.CONFLICT,
    "sandbox_unavailable": HTTPStatus.CONFLICT,
    "source_blocked": HTTPStatus.CONFLICT,
    "route_taken": HTTPStatus.CONFLICT,
    "protocol_unsupported": HTTPStatus.CONFLICT,
    "backup_running": HTTPStatus.CONFLICT,
    **dict.fromkeys(
        """source_invalid source_ambiguous index_missing index_invalid index_unsigned index_signature_invalid
        index_from_future index_rolled_back index_changed index_browse_only index_expired index_mismatch unsupported
        too_young held release_revoked revocations_invalid revocations_unsigned revocations_expired
        fetch_blocked import_off import_invalid import_mismatch""".split(),
        HTTPStatus.CONFLICT,
    ),
    "fetch_missing": HTTPStatus.BAD_GATEWAY,
    "fetch_failed": HTTPStatus.BAD_GATEWAY,
    "fetch_too_large": HTTPStatus.BAD_GATEWAY,
    "ledger_damaged": HTTPStatus.SERVICE_UNAVAILABLE,
    "busy": HTTPStatus.TOO_MANY_REQUESTS,
    "sandbox_failed": HTTPStatus.SERVICE_UNAVAILABLE,
    "too_many_children": HTTPStatus.SERVICE_UNAVAILABLE,
    "uids_unusable": HTTPStatus.SERVICE_UNAVAILABLE,
    "too_many_streams": HTTPStatus.TOO_MANY_REQUESTS,
    "service_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "secret_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "store_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "stopping": HTTPStatus.SERVICE_UNAVAILABLE,
    "ledger_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "audit_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "deadline_exceeded": HTTPStatus.SERVICE_UNAVAILABLE,
    "unreachable": HTTPStatus.SERVICE_UNAVAILABLE,
    **{code.value: HTTPStatus.CONFLICT for code in Code},
    **dict.fromkeys(OF_PLUGINS, HTTPStatus.BAD_GATEWAY),
}
"""Codes that are not here are faults of ours: 500."""


class Stopping(Problem):
    """The daemon stops. Not `begun`: nothing was done, and the answer says so by Retry-After (RFC 9110, 10.2.3)."""

    def __init__(self, *, begun: bool) -> None:
        self.begun = begun
        if begun:
            detail = "the daemon stops and does not wait any longer; whether it was done is not known"
            super().__init__("stopping", detail, "latticectl info or latticectl audit query show it, once it is back")
        else:
            super().__init__("stopping", "the daemon is stopping; nothing was done", "ask again")


def status_of(problem: Problem) -> HTTPStatus:
    """The HTTP status that goes with a problem's code; 500 for a code that is not in `STATUS_OF`."""
    return STATUS_OF.get(problem.code, HTTPStatus.INTERNAL_SERVER_ERROR)


def document(
    code: str, detail: str, hint: str, status: int, *, errors: list[dict[str, str]] | None = None, more: bool = False
) -> bytes:
    """The body of one problem document (RFC 9457), as JSON in ASCII."""
    title = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Error"
    # about:blank: the title is then the phrase of the status (RFC 9457, section 4.2.1); `code` says what it is.
    view = wire.ProblemView(type="about:blank", title=title, status=status, code=code, detail=detail, hint=hint)
    if errors is not None:
        view = replace(view, errors=errors, more=more)
    return json.dumps(wire.encode(view)).encode("ascii")


def response(problem: Problem) -> web.Response:
    """A problem as the answer to a request: the status that goes with its code, and a problem document."""
    status = status_of(problem)
    errors, more = None, False
    if isinstance(problem, ConfigInvalid):
        errors = [
            {"path": configuration.place(one.path), "expected": one.expected, "found": one.found}
            for one in problem.faults
        ]
        more = not problem.whole
    body = document(problem.code, problem.reason, problem.hint, status, errors=errors, more=more)
    headers = {"Retry-After": "1"} if isinstance(problem, Stopping) and not problem.begun else None
    return web.Response(status=status, body=body, content_type=wire.PROBLEM_TYPE, headers=headers)


def of_http_error(error: web.HTTPException) -> web.Response:
    """An error raised by aiohttp itself (404, 405, ...) as a problem document; of its headers, Allow is kept."""
    codes = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
    code = codes.get(error.status, "bad_request")
    detail = {
        404: "there is no such resource",
        405: "this method is not allowed here",
        413: f"expected a body of at most {wire.MAX_BODY_BYTES} bytes",
    }.get(error.status, error.reason)
    answer = web.Response(status=error.status, body=document(code, detail, "", error.status))
    answer.content_type = wire.PROBLEM_TYPE
    # RFC 9110, section 15.5.6: an answer with 405 must have it.
    if allow := error.headers.get("Allow"):
        answer.headers["Allow"] = allow
    return answer
