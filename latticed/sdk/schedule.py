"""The decorator that has the host call an action at set times."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Method = TypeVar("Method", bound=Callable[..., Any])


def schedule(
    *,
    every_s: int | None = None,
    daily: str | None = None,
    cron: str | None = None,
    name: str | None = None,
    payload: Any = None,
) -> Callable[[Method], Method]:
    """Have the host call this action (`do_ACTION`): every so many seconds, `daily` at "HH:MM", or by `cron`.

    `daily` and `cron` (five fields) are in the host's time zone. `name` tells schedules apart, and is the action's name
    where it is not given; `payload` is handed to the action. `latticectl sign` reads the decorators without running the
    code, so the arguments are literals, and writes them into the manifest: the host follows that alone. ValueError.
    """
    when = {"every_s": every_s, "daily": daily, "cron": cron}
    given = {key: value for key, value in when.items() if value is not None}
    if len(given) != 1:
        raise ValueError(f"expected one of every_s, daily, cron, found {', '.join(given) or 'none'}")

    def mark(method: Method) -> Method:
        action = method.__name__[3:] if method.__name__.startswith("do_") else ""
        if not action:
            raise ValueError(f"expected @schedule on a method do_ACTION, found {method.__name__}")
        entry = {"name": name or action, **given, "action": action}
        if payload is not None:
            entry["payload"] = payload
        # The last decorator is applied first.
        method.schedules = [entry, *getattr(method, "schedules", [])]  # type: ignore[attr-defined]
        return method

    return mark
