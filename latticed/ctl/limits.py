"""What each capability's calls are limited to, from the settings that the daemon would use here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latticed.settings import Settings


def of(settings: Settings) -> dict[str, str]:
    """What the calls of each capability are limited to, as a short text by capability.

    All calls of a plugin also share the limit `host_calls.per_second`.
    """
    calls, static, notify = settings.host_calls, settings.static, settings.notify
    monitor, ddns, mail, task = settings.monitor, settings.ddns, settings.mail, settings.task
    service, tunnel = settings.service, settings.tunnel
    # Numbers without a setting are constants of host services, which latticectl may not import.
    return {
        "audit:read": "own events, 1000 an answer",
        "kv:read": "1000 keys an answer",
        "kv:write": f"{_size(calls.kv_value_bytes)} a value, {calls.kv_keys} keys, {_size(calls.kv_total_bytes)}",
        "log:write": f"{calls.log_per_second} lines a second",
        "http:egress": f"256 KiB each way, {calls.deadline_s:g} s; {mail.per_hour} mails an hour",
        "notify:send": f"{notify.plugin_items} waiting, {_size(notify.plugin_bytes)}",
        "node:read": "500 journal entries an answer",
        "node:admin": "64 labels",
        "monitor:read": f"{monitor.results} results each",
        "monitor:admin": f"{monitor.plugin_monitors} monitors, every {monitor.min_interval_s:g} s at most",
        "static:read": "192 KiB an answer",
        "static:write": f"{_size(static.file_bytes)} a file, {static.plugin_files} files, {_size(static.plugin_bytes)}",
        "task:read": "own tasks",
        "task:run": f"{task.plugin_waiting} tasks waiting, {service.plugin_services} services",
        "tunnel:admin": f"{tunnel.plugin_tunnels} tunnels",
        "worker:route": "below /ID/ unless granted more",
        "network:plan": "64 KiB an intent",
        "network:apply": "what an operator approved, once",
        "ddns:admin": f"{ddns.plugin_records} records",
    }


def _size(count: int) -> str:
    """`1536` as "1536 bytes", `1048576` as "1 MiB": the largest unit that divides it."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size and count % size == 0:
            return f"{count // size} {unit}"
    return f"{count} bytes"
