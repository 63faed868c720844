"""Host calls that leave the machine or reach people: http, mail, notify."""

from __future__ import annotations

import json

from latticed.sdk.calls import Calls, from_base64, given, to_base64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from latticed.sdk import answers


class Response:
    """What a web server answered: `status`, `headers` with names such as `Content-Type`, `body` in bytes, decoded.

    `redirected`: `method` and `url` of the request that was answered, where redirects led to another one; else None.
    """

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str | list[str]],
        body: bytes,
        redirected: answers.Redirected | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.redirected = redirected

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
        """One request with its redirects (http:egress).

        A status of 400 or more is no error here. `${secret:NAME}` in url, headers and a `body` of text is filled in by
        the host, if the operator bound NAME to this plugin. `sign`, `{"secret": "${secret:NAME}", "id": …}`, signs it
        as a webhook (docs/operate/egress.md). `service`: a service of the plugin, in whose own network `url` is,
        `http://127.0.0.1:port/…`. Redirects with 301, 302 and 303 make GET of a POST, without its body: `redirected`
        of the answer says so.

        Errors: egress_blocked when it may not go there: the host was not granted, its address is private, or a secret
        would go over plain http; service_unavailable when there is no answer; too_large for a body.
        Limits: 256 KiB of body each way; 10 s with all redirects; 8 requests of a plugin at once.
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
        found: answers.HttpDoAnswer = self._ask("http.do", params)
        return Response(
            found["status_code"],
            found.get("header") or {},
            from_base64(found.get("body_base64") or ""),
            found.get("redirected"),
        )

    def get(self, url: str, *, headers: Mapping[str, str] | None = None, service: str | None = None) -> Response:
        """As request, with the method GET (http:egress)."""
        return self.request("GET", url, headers=headers, service=service)

    def post(
        self,
        url: str,
        body: str | bytes,
        *,
        headers: Mapping[str, str] | None = None,
        service: str | None = None,
    ) -> Response:
        """As request, with the method POST (http:egress)."""
        return self.request("POST", url, headers=headers, body=body, service=service)


class Mail(Calls):
    """Mail through the operator's relay."""

    def send(self, to: str | Sequence[str], subject: str, body: str) -> answers.MailSendAnswer:
        """Send a message in plain text to the operator's relay, to all recipients or to none (http:egress).

        Addresses are plain ones, `ops@example.org`. `${secret:NAME}` in subject and body is filled in by the host.

        Errors: egress_blocked for a recipient that `mail.allow` does not name; service_unavailable without a relay, or
        when it refuses; bad_params when it refuses a recipient; deadline_exceeded: it is not known whether it took it.
        Limits: `mail.recipients` (10), `mail.body_bytes` (128 KiB), `mail.per_hour` (30); a subject of 250 characters.
        """
        params = {"to": to if isinstance(to, str) else list(to), "subject": subject, "body": body}
        found: answers.MailSendAnswer = self._ask("mail.send", params)
        return found


class Notify(Calls):
    """Messages to the operator; which channel they take is the operator's choice."""

    def send(
        self,
        title: str,
        body: str = "",
        *,
        severity: answers.Severity | None = None,
        event: str | None = None,
        dedupe: str | None = None,
    ) -> str:
        """Queue a notification and return its id; it is then delivered at least once (notify:send).

        `severity` is info (the default), warning, error or critical. `event` is a word for the operator's rules, such
        as `disk.full`: 1 to 64 of a-z, 0-9, `.`, `_`, `-`. Of messages with the same `dedupe` one is delivered, as long
        as it is kept; the id is then that of the first.

        Errors: quota_exceeded when too many wait to be delivered; bad_params for a blank title or another event.
        Limits: `notify.plugin_items` (1,000) and `notify.plugin_bytes` (4 MiB) waiting. A title is cut to 200
        characters, a body to 8,192.
        """
        asked = given(title=title, body=body, severity=severity, event=event, dedupe=dedupe)
        found: answers.NotifySendAnswer = self._ask("notify.send", asked)
        return found["id"]
