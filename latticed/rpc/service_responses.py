"""The shapes of answers about host services: secrets, notifications, usage. See `responses`."""

from __future__ import annotations

from typing import Literal, TypedDict


class SecretRow(TypedDict):
    """`usable` is false when it was sealed with a key that is not here."""

    name: str
    version: int
    plugins: list[str]
    created_at: str
    updated_at: str
    usable: bool


class SecretList(TypedDict):
    """All secrets."""

    secrets: list[SecretRow]


class SecretSet(TypedDict):
    """The secret that was set, and its version from now on."""

    name: str
    version: int


class SecretDeleted(TypedDict):
    """The secret that was deleted; `plugins`: those that it was bound to."""

    name: str
    plugins: list[str]
    deleted: Literal[True]


class SecretBound(TypedDict):
    """Whether the secret is bound to the plugin now."""

    name: str
    plugin: str
    bound: bool


class NotificationDelivery(TypedDict):
    """A notification at one channel: `waiting`, `done` or `failed`; `next_at` is when a waiting one is sent."""

    channel: str
    state: str
    attempts: int
    next_at: str | None
    code: str
    reason: str


class NotificationChannel(TypedDict):
    """A channel: `state` is `ok`, `failing` or `degraded`, since `failing_since`, for `code` and `reason`.

    `waiting`: how many notifications wait for it, the oldest since `oldest_at`. `paused_until`: nothing is sent before.
    """

    name: str
    state: str
    code: str
    reason: str
    waiting: int
    oldest_at: str | None
    failing_since: str | None
    paused_until: str | None
    last_success_at: str | None


class ChannelTested(TypedDict):
    """What a channel made of a test message: `outcome` is `done`, `retry` or `fail`, `answered` what it said."""

    channel: str
    outcome: str
    code: str
    reason: str
    answered: str


class Notification(TypedDict):
    """`next_at` is when a queued one is tried next; `channels`: those that it was routed to."""

    seq: int
    id: str
    plugin: str
    severity: str
    event: str
    title: str
    status: str
    attempts: int
    next_at: str | None
    code: str
    reason: str
    channels: list[NotificationDelivery]
    created_at: str
    updated_at: str


class NotificationPage(TypedDict):
    """`counts` by status, of all there are; `next` is what `after` must be for the following page, null on the last.

    `channels`: all that anything was sent to.
    """

    notifications: list[Notification]
    channels: list[NotificationChannel]
    next: int | None
    counts: dict[str, int]


class NotificationReopened(TypedDict):
    """The notification that was queued again."""

    id: str
    queued: Literal[True]


class NotificationsPruned(TypedDict):
    """How many were removed."""

    removed: int


class UsedCall(TypedDict):
    """One host call: how often it was made and refused."""

    call: str
    allowed: int
    denied: int
    last_at: str


class ReachedHost(TypedDict):
    """A host (host:port) that the plugin has connected to, and when last."""

    host: str
    last_at: str


class UsageReport(TypedDict):
    """What a plugin did since then; `unused` are granted capabilities, `unused_hosts` accepted hosts.

    `watched_since`: from when on its calls under its present grants are known; nothing is unused until that is long
    enough ago (`enough`).
    """

    id: str
    since: str
    watched_since: str | None
    enough: bool
    calls: list[UsedCall]
    hosts: list[ReachedHost]
    unused: list[str]
    unused_hosts: list[str]
