"""What is sent to each service, and what its answer means. Pure; by the services' public documentation.

    telegram  core.telegram.org/bots/api#sendmessage          bark    github.com/Finb/bark-server, API V2
    discord   discord.com/developers/docs/resources/webhook   slack   docs.slack.dev, incoming webhooks
    ntfy      docs.ntfy.sh/publish                            gotify  gotify.net/api-docs
    webhook   standardwebhooks.com

Tokens stay references in URL and headers. Bodies go as base64, in which the host replaces none: they hold what senders
wrote.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Literal, assert_never

from latticed.system.notify import render
from latticed.system.notify.intent import (
    BarkChannel,
    DiscordChannel,
    GotifyChannel,
    MailChannel,
    NtfyChannel,
    SlackChannel,
    TelegramChannel,
    WebhookChannel,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latticed.system.notify.intent import Channel, NotifyItem, Severity
    from latticed.system.notify.render import Text

TELEGRAM_UNITS: Final = 4_096
DISCORD_TITLE: Final = 256
DISCORD_BODY: Final = 4_096
SLACK_CHARACTERS: Final = 4_000
NTFY_BYTES: Final = 4_096
"""A longer message becomes an attached file."""
NTFY_TITLE: Final = 256
BARK_BYTES: Final = 3_000
"""A push of Apple's takes 4 KiB, with what Bark adds."""
GOTIFY_CHARACTERS: Final = 16_384
WEBHOOK_ITEMS_BYTES: Final = 160 << 10
"""A request of the host takes 256 KiB."""
MAIL_SUBJECT: Final = 200
ANSWER_CHARACTERS: Final = 200

_COLOURS: Final[dict[Severity, int]] = {"info": 0x3B82F6, "warning": 0xF59E0B, "error": 0xEF4444, "critical": 0xB91C1C}
_NTFY: Final[dict[Severity, int]] = {"info": 3, "warning": 4, "error": 4, "critical": 5}
_GOTIFY: Final[dict[Severity, int]] = {"info": 4, "warning": 6, "error": 8, "critical": 10}
_BARK: Final[dict[Severity, str]] = {
    "info": "active",
    "warning": "active",
    "error": "timeSensitive",
    "critical": "critical",
}
_MARKS: Final[dict[Severity, str]] = {
    "info": "",
    "warning": "[warning] ",
    "error": "[error] ",
    "critical": "[critical] ",
}
_OF_CHANNEL: Final = frozenset({401, 402, 403, 404, 405, 407, 410})
"""Statuses that the next message would get as well."""
_OURS: Final = frozenset({"rate_limited", "audit_unavailable", "internal"})
"""Codes of host calls that say nothing about the other side."""
_LATER: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelCall:
    """One host call: `http.do` or `mail.send`, and its parameters."""

    call: Literal["http.do", "mail.send"]
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an answer means, as the host takes it (`ingress.deliverer`)."""

    outcome: Literal["done", "retry", "fail"]
    code: str = ""
    reason: str = ""
    retry_after_s: float = 0.0
    blames_channel: bool = True


def request(channel: Channel, text: Text, message_id: str, items: Sequence[NotifyItem]) -> ChannelCall:
    """What is sent to a channel for one message."""
    title = _MARKS[text.severity] + text.title
    match channel:
        case TelegramChannel():
            return _telegram(channel, title, text)
        case BarkChannel():
            body = render.cut(text.body or text.title, BARK_BYTES - render.in_json(text.title), render.in_json)
            level = _BARK[text.severity]
            push = {"title": text.title, "body": body, "level": level, "group": "latticed", "id": message_id}
            return _post(f"{_base(channel.server)}/{channel.key}", push)
        case DiscordChannel():
            return _discord(channel, text)
        case SlackChannel():
            whole = render.cut(f"{title}\n{text.body}".strip(), SLACK_CHARACTERS, len)
            flags = {"mrkdwn": False, "unfurl_links": False, "unfurl_media": False}
            return _post(channel.url, {"text": render.slack(whole), **flags})
        case NtfyChannel():
            return _ntfy(channel, text, message_id)
        case GotifyChannel():
            plain: dict[str, Any] = {
                "title": title,
                "message": render.cut(text.body or text.title, GOTIFY_CHARACTERS, len),
                "priority": _GOTIFY[text.severity],
                "extras": {"client::display": {"contentType": "text/plain"}},
            }
            return _post(f"{_base(channel.server)}/message", plain, {"X-Gotify-Key": channel.token})
        case WebhookChannel():
            return _webhook(channel, text, message_id, items)
        case MailChannel():
            subject = render.cut(render.one_line(title), MAIL_SUBJECT, len)
            params = {"to": list(channel.to), "subject": render.literal(subject), "body": render.literal(text.body)}
            return ChannelCall(call="mail.send", params=params)
    assert_never(channel)


def verdict(channel: Channel, answer: Mapping[str, Any], *, now: datetime) -> tuple[Verdict, str]:
    """What the answer of http.do or mail.send means, and its beginning as text."""
    if isinstance(channel, MailChannel):
        return Verdict(outcome="done"), f"the relay took it for {answer.get('recipients')} recipients"
    status, redirected = int(answer["status_code"]), answer.get("redirected")
    raw = base64.b64decode(answer["body_base64"]).decode("utf-8", "replace")
    shown = f"{status} {render.one_line(raw[:ANSWER_CHARACTERS])}".strip()
    if redirected is not None and redirected["method"] != "POST":
        # What answered is a page that GET asked for: its 200 says nothing of the message.
        key = "url" if hasattr(channel, "url") else "server"
        reason = (
            f"the message was lost on a redirect (HTTP made GET of POST): set {key} of the channel to the address that"
            f" takes it; the redirect leads to {redirected['url'].partition('?')[0]}"
        )
        return Verdict(outcome="fail", code="redirected", reason=reason), shown
    plain = _object(raw)
    after_s = _retry_after_s(answer["header"], plain, now)
    found = _of_status(status, shown, after_s)
    if found.outcome == "done":
        found = _of_body(channel, raw, plain, shown, after_s)
    return found, shown


def refused(call: str, code: str, message: str) -> Verdict:
    """What it means that the host did not carry the call out, or got no answer."""
    reason = message[:ANSWER_CHARACTERS]
    if code in _OURS:
        return Verdict(outcome="retry", code=code, reason=reason, retry_after_s=2.0, blames_channel=False)
    # A reply 5xx of a relay (RFC 5321, section 4.2.1) has no code of its own.
    is_final = call == "mail.send" and "the relay refuses the message" in message
    if code in {"egress_blocked", "capability_denied", "capability_not_granted"}:
        return Verdict(outcome="fail", code=code, reason=reason)
    if code == "bad_params" or is_final or (code == "too_large" and call == "mail.send"):
        # Of http.do: a secret that is not bound, a URL that is none. Of mail: an address that the relay does not know.
        return Verdict(outcome="fail", code=code, reason=reason, blames_channel=code == "bad_params")
    return Verdict(outcome="retry", code=code, reason=reason)


def _telegram(channel: TelegramChannel, title: str, text: Text) -> ChannelCall:
    head = render.cut(title, TELEGRAM_UNITS // 2, render.utf16)
    body = render.cut(text.body, TELEGRAM_UNITS - render.utf16(head) - 1, render.utf16)
    written = f"<b>{render.telegram(head)}</b>\n{render.telegram(body)}".rstrip("\n")
    plain: dict[str, Any] = {
        "chat_id": channel.chat,
        "text": written,
        "parse_mode": "HTML",
        "link_preview_options": {"is_disabled": True},
        "disable_notification": text.severity == "info",
    }
    if channel.thread:
        plain["message_thread_id"] = channel.thread
    return _post(f"{_base(channel.server)}/bot{channel.token}/sendMessage", plain)


def _discord(channel: DiscordChannel, text: Text) -> ChannelCall:
    def size(part: str) -> int:
        return render.utf16(render.discord(part))

    embed = {
        "title": render.discord(render.cut(text.title, DISCORD_TITLE, size)),
        "description": render.discord(render.cut(text.body, DISCORD_BODY, size)),
        "color": _COLOURS[text.severity],
    }
    joint = "&" if "?" in channel.url else "?"
    # With `wait` Discord answers once the message is there, with it; without, 204 at once.
    return _post(f"{channel.url}{joint}wait=true", {"embeds": [embed], "allowed_mentions": {"parse": []}})


def _ntfy(channel: NtfyChannel, text: Text, message_id: str) -> ChannelCall:
    plain = {
        "topic": channel.topic,
        "title": render.cut(text.title, NTFY_TITLE, render.utf8),
        "message": render.cut(text.body or text.title, NTFY_BYTES, render.utf8),
        "priority": _NTFY[text.severity],
        # A second message with it replaces the first one.
        "sequence_id": message_id,
    }
    header = {"Authorization": f"Bearer {channel.token}"} if channel.token else {}
    return _post(f"{_base(channel.server)}/", plain, header)


def _webhook(channel: WebhookChannel, text: Text, message_id: str, items: Sequence[NotifyItem]) -> ChannelCall:
    listed, left = [], WEBHOOK_ITEMS_BYTES
    for one in items:
        row = {name: getattr(one, name) for name in one.__struct_fields__}
        left -= len(json.dumps(row))
        # Without its text rather than not at all: the receiver may count on every id.
        listed.append(row if left > 0 else {**row, "body": "", "title": one.title[:40]})
    plain = {
        "type": items[0].event if len(items) == 1 else "digest",
        "timestamp": items[0].created_at,
        "data": {"id": message_id, "title": text.title, "body": text.body, "severity": text.severity, "items": listed},
    }
    if not channel.secret:
        return _post(channel.url, plain, {"Idempotency-Key": message_id, "Webhook-Id": message_id})
    found = _post(channel.url, plain, {"Idempotency-Key": message_id})
    # The host signs: the secret never comes here.
    found.params["sign"] = {"secret": channel.secret, "id": message_id}
    return found


def _post(url: str, plain: Any, header: dict[str, str] | None = None) -> ChannelCall:
    body = json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    params = {
        "method": "POST",
        "url": url,
        "header": {"Content-Type": "application/json", **(header or {})},
        "body_base64": base64.b64encode(body).decode("ascii"),
    }
    return ChannelCall(call="http.do", params=params)


def _base(server: str) -> str:
    return server.rstrip("/")


def _of_status(status: int, shown: str, after_s: float) -> Verdict:
    if 200 <= status < 300:
        return Verdict(outcome="done")
    if status in _LATER or status >= 500:
        return Verdict(outcome="retry", code=f"http_{status}", reason=shown, retry_after_s=after_s)
    return Verdict(
        outcome="fail", code=f"http_{status}", reason=shown, blames_channel=status in _OF_CHANNEL or status < 400
    )


def _of_body(channel: Channel, raw: str, plain: dict[str, Any], shown: str, after_s: float) -> Verdict:
    """What a body says after all, under a status that says that all is well."""
    match channel:
        case TelegramChannel():
            is_done, code = plain.get("ok") is True, plain.get("error_code")
        case BarkChannel():
            is_done, code = plain.get("code") == 200, plain.get("code")
        case SlackChannel():
            # Servers that take the same answer in their own ways.
            is_done = raw.strip() == "ok" or plain.get("ok") is True or plain.get("success") is True
            code = 400 if plain.get("ok") is False or plain.get("success") is False else None
        case DiscordChannel() | NtfyChannel() | GotifyChannel():
            is_done, code = "id" in plain, plain.get("code") or plain.get("errorCode")
        case _:
            is_done, code = True, None
    if is_done:
        return Verdict(outcome="done")
    if type(code) is int and 400 <= code < 600:
        return _of_status(code, shown, after_s)
    # A page of something in between (a proxy, a portal): the service itself may be there later.
    return Verdict(outcome="retry", code="unexpected_answer", reason=shown, retry_after_s=after_s)


def _retry_after_s(header: Mapping[str, str], plain: dict[str, Any], now: datetime) -> float:
    """What the other side asks for: Retry-After (RFC 9110, section 10.2.3), or Telegram's and Discord's own; else 0."""
    parameters = plain.get("parameters")
    own = parameters.get("retry_after") if isinstance(parameters, dict) else plain.get("retry_after")
    seconds = float(own) if isinstance(own, int | float) and not isinstance(own, bool) and 0 <= own < 1e9 else 0.0
    said = header.get("Retry-After", "").strip()
    if said.isascii() and said.isdigit():
        return max(seconds, float(said[:9]))
    if said:
        try:
            when = parsedate_to_datetime(said)
        except (ValueError, TypeError, OverflowError):  # the last one for a year of eleven digits
            return seconds
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max(seconds, (when - now).total_seconds())
    return seconds


def _object(raw: str) -> dict[str, Any]:
    """A body as a JSON object; empty for anything else."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
