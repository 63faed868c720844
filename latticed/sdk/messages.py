"""Host calls that leave the machine or reach people: http, mail, notify."""

from __future__ import annotations

import json

from latticed.sdk.calls import Calls, from_base64, given, to_base64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


class Response:
    """What a web server answered: `status`, `headers` with names such as `Content-Type`, `body` in bytes, decoded."""

    def __init__(self, status: int, headers: Mapping[str, Any], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def header(self, name: str) -> str | None:
        """The (first) value of a header, whatever the case of its name."""
        for known, value in self.headers.items():
            if known.lower() == name.lower():
                return str(value[0] if isinstance(value, list) and value else value)
        return None

    def text(self) -> str:
        """The body as UTF-8, with U+FFFD for what is none."""
        return self.body.decode("utf-8", errors="replace")

    def json(self) -> Any:
        """The body decoded from JSON; ValueError when it is none."""
        return json.loads(self.body)


class Http(Calls):
    """Requests through the host's guarded egress: only to hosts that the operator granted (docs/operate/egress.md)."""

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: str | bytes | None = None,
        sign: Mapping[str, str] | None = None,
        service: str | None = None,
    ) -> Response:
        """One request with its redirects; HostError("egress_blocked") when it may not go there (http:egress).

        `${secret:NAME}` in url, headers and a `body` of text is filled in by the host, if the operator bound NAME to
        this plugin. `sign`, `{"secret": "${secret:NAME}", "id": …}`, signs it as a webhook (docs/operate/egress.md). A
        status of 400 or more is no error here. `service`: a service of the plugin, in whose own network `url` is,
        `http://127.0.0.1:port/…`.
        """
        # Left out rather than null: `header` of http.do takes no null.
        params = given(
            method=method,
            url=url,
            header=dict(headers) if headers else None,
            sign=dict(sign) if sign else None,
            service=service,
        )
        if body is not None:
            params.update({"body": body} if isinstance(body, str) else {"body_base64": to_base64(body)})
        found = self._ask("http.do", params)
        return Response(found["status_code"], found.get("header") or {}, from_base64(found.get("body_base64") or ""))

    def get(self, url: str, *, headers: Mapping[str, str] | None = None, service: str | None = None) -> Response:
        """GET; see request (http:egress)."""
        return self.request("GET", url, headers=headers, service=service)

    def post(
        self,
        url: str,
        body: str | bytes,
        *,
        headers: Mapping[str, str] | None = None,
        service: str | None = None,
    ) -> Response:
        """POST; see request (http:egress)."""
        return self.request("POST", url, headers=headers, body=body, service=service)


class Mail(Calls):
    """Mail through the operator's relay."""

    def send(self, to: str | Sequence[str], subject: str, body: str) -> Any:
        """Send a message in plain text to the operator's relay: `{ok, message_id, recipients}` (http:egress).

        It goes to all recipients or to none. HostError("deadline_exceeded"): it is not known whether the relay took it.
        """
        return self._ask("mail.send", {"to": to if isinstance(to, str) else list(to), "subject": subject, "body": body})


class Notify(Calls):
    """Messages to the operator; which channel they take is the operator's choice."""

    def send(
        self,
        title: str,
        body: str = "",
        *,
        severity: str | None = None,
        event: str | None = None,
        dedupe: str | None = None,
    ) -> str:
        """Queue a notification and return its id; accepted means delivered at least once (notify:send).

        `severity` is info, warning, error or critical; `event` is a word for the operator's rules; of messages with the
        same `dedupe` one is delivered.
        """
        asked = given(title=title, body=body, severity=severity, event=event, dedupe=dedupe)
        return str(self._ask("notify.send", asked)["id"])
