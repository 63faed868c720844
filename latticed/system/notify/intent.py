"""What an operator wants: channels and rules, and the items that they are about. Frozen; `check` reads them."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

Severity = Literal["info", "warning", "error", "critical"]
SEVERITIES: Final[tuple[Severity, ...]] = ("info", "warning", "error", "critical")
"""From the least to the most severe."""


class _IntentPart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of the configuration."""


class _ChannelPart(_IntentPart, frozen=True, kw_only=True, tag_field="kind"):
    """A channel. `per_minute`: most messages; what is more goes together into one."""

    per_minute: int = 20


class TelegramChannel(_ChannelPart, frozen=True, kw_only=True, tag="telegram"):
    """A chat, written to by a bot; `server` is a Bot API server, `thread` a topic of the chat."""

    token: str
    chat: str
    thread: int = 0
    server: str = "https://api.telegram.org"


class BarkChannel(_ChannelPart, frozen=True, kw_only=True, tag="bark"):
    """A device with the Bark app."""

    key: str
    server: str = "https://api.day.app"


class DiscordChannel(_ChannelPart, frozen=True, kw_only=True, tag="discord"):
    """A webhook of a Discord channel."""

    url: str


class SlackChannel(_ChannelPart, frozen=True, kw_only=True, tag="slack"):
    """An incoming webhook of Slack, or of a server that takes the same."""

    url: str


class NtfyChannel(_ChannelPart, frozen=True, kw_only=True, tag="ntfy"):
    """A topic of an ntfy server; `token` may be empty."""

    topic: str
    token: str = ""
    server: str = "https://ntfy.sh"


class GotifyChannel(_ChannelPart, frozen=True, kw_only=True, tag="gotify"):
    """An application of a Gotify server."""

    server: str
    token: str


class WebhookChannel(_ChannelPart, frozen=True, kw_only=True, tag="webhook"):
    """Any receiver of JSON by POST; with `secret` signed as standardwebhooks.com says."""

    url: str
    secret: str = ""


class MailChannel(_ChannelPart, frozen=True, kw_only=True, tag="mail"):
    """Addresses, by the operator's relay."""

    to: tuple[str, ...]


Channel = (
    TelegramChannel
    | BarkChannel
    | DiscordChannel
    | SlackChannel
    | NtfyChannel
    | GotifyChannel
    | WebhookChannel
    | MailChannel
)


class Quiet(_IntentPart, frozen=True, kw_only=True):
    """Hours, `22:00` to `07:00` of a time zone, in which what is not critical is held back."""

    start: str
    end: str
    zone: str


class NotifyRule(_IntentPart, frozen=True, kw_only=True):
    """Which items go to which channels. Without `events`, `senders`, `severities` all; `monitor.*`: all that begin so.

    `title` and `body` are templates of these items' messages at these channels.
    """

    channels: tuple[str, ...]
    events: tuple[str, ...] = ()
    senders: tuple[str, ...] = ()
    severities: tuple[Severity, ...] = ()
    quiet: Quiet | None = None
    title: str = "{{title}}"
    body: str = "{{body}}"


class FanoutIntent(_IntentPart, frozen=True, kw_only=True):
    """The configuration. `default`: channels of what no rule takes. `window_s`: repeats within it are one message.
    `host`: how this machine is called in messages; empty: not at all.
    """

    channels: dict[str, Channel]
    default: tuple[str, ...]
    rules: tuple[NotifyRule, ...] = ()
    window_s: int = 60
    host: str = ""


class NotifyItem(Struct, frozen=True, kw_only=True):
    """One notification; `created_at` is RFC 3339 in UTC."""

    id: str
    sender: str
    event: str
    severity: Severity
    title: str
    body: str
    created_at: str


class RouteAsked(Struct, frozen=True, kw_only=True):
    """The payload of `route`; `avoid`: channels that are degraded."""

    item: NotifyItem
    avoid: tuple[str, ...] = ()


class DeliverAsked(Struct, frozen=True, kw_only=True):
    """The payload of `deliver`: one message, of `item` and `more`, under `id`."""

    channel: str
    id: str
    item: NotifyItem
    more: tuple[NotifyItem, ...] = ()
