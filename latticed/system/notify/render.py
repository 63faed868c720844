"""Messages as text: one pass over the templates, repeats and digests, and what each service's markup needs. Pure."""

from __future__ import annotations

import html
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from latticed.system.notify.check import FIELD
from latticed.system.notify.intent import SEVERITIES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from latticed.system.notify.intent import NotifyItem, NotifyRule, Severity

TITLE: Final = 300
"""Characters of a title once its template is filled in."""
LISTED: Final = 30
"""Different lines of a digest, and different texts of repeats; the rest is counted."""
REPEATS_BYTES: Final = 2_200
"""Of the different texts of repeats together: fits into a message of every service."""
REPEAT_BYTES: Final = 500
"""Of each of them."""
ELLIPSIS: Final = "…"
_BREAKS: Final = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]+")
# What Discord reads as markup (support.discord.com, Markdown Text 101); `@` is handled apart.
_DISCORD: Final = re.compile(r"([\\*_~`|>#\[\]()<:-])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One message as plain text: `title` is one line, `count` says how many items it stands for."""

    title: str
    body: str
    severity: Severity
    count: int


def compose(item: NotifyItem, more: Sequence[NotifyItem], rule: NotifyRule, *, host: str) -> Text:
    """The message of one item, of repeats of it, or of different ones together.

    Repeats are as the item with `(×3)`, and have their different texts, one below the other. Of different ones the
    title says how many, and a line each says what, the most severe first.
    """
    items = (item, *more)
    severity = max((one.severity for one in items), key=SEVERITIES.index)
    if len({(one.sender, one.event, one.title) for one in items}) == 1:
        item = msgspec.structs.replace(item, body=_texts(items))
        title = cut(one_line(_filled(rule.title, item, host=host, count=len(items))), TITLE, len) or item.event
        if len(items) > 1:
            title += f" (×{len(items)})"
        body = _filled(rule.body, item, host=host, count=len(items))
        return Text(title=title, body=body, severity=severity, count=len(items))
    title = f"{len(items)} notifications" + (f" of {item.sender}" if len({one.sender for one in items}) == 1 else "")
    if host:
        title += f" on {host}"
    lines = Counter((SEVERITIES.index(one.severity), one.sender, one.title) for one in items)
    shown = sorted(lines.items(), key=lambda line: -line[0][0])  # stable: in their order within a severity
    told = [
        f"{SEVERITIES[rank]} {sender}: {one_line(what)}" + (f" (×{count})" if count > 1 else "")
        for (rank, sender, what), count in shown[:LISTED]
    ]
    if left := sum(count for _, count in shown[LISTED:]):
        told.append(f"and {left} more: latticectl notify list")
    return Text(title=one_line(title), body="\n".join(told), severity=severity, count=len(items))


def one_line(text: str) -> str:
    """The text without line ends and control characters, which no title may have."""
    return _BREAKS.sub(" ", text).strip()


def cut(text: str, most: int, size: Callable[[str], int]) -> str:
    """The text cut to what `size` says is at most `most`, with a mark; `size` adds up over characters."""
    if size(text) <= most:
        return text
    left, kept = most - size(ELLIPSIS), 0
    for char in text:
        left -= size(char)
        if left < 0:
            break
        kept += 1
    return text[:kept] + ELLIPSIS


def utf16(text: str) -> int:
    """UTF-16 code units, by which Telegram and Discord count."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def utf8(text: str) -> int:
    """Bytes in UTF-8."""
    return len(text.encode("utf-8", "surrogatepass"))


def in_json(text: str) -> int:
    """Bytes within a JSON text that is not limited to ASCII."""
    return utf8(text) + sum(char in '"\\\n\r\t' for char in text)


def telegram(text: str) -> str:
    """Escaped for parse_mode HTML (core.telegram.org/bots/api#html-style)."""
    return html.escape(text, quote=False)


def slack(text: str) -> str:
    """Escaped as Slack has it: these three alone begin links, mentions and entities (docs.slack.dev, formatting)."""
    return html.escape(text, quote=False)


def discord(text: str) -> str:
    """Escaped for Discord's Markdown; a mention is broken by a character that is not seen."""
    return _DISCORD.sub(r"\\\1", text).replace("@", "@\u200b")


def literal(text: str) -> str:
    """Text in which the host finds no reference to a secret: a sender must not get at the values of this plugin."""
    return text.replace("${secret:", "$ {secret:")


def _texts(items: Sequence[NotifyItem]) -> str:
    """The different texts of repeats, in their order, and how many more there are; a single one is whole."""
    texts = list(dict.fromkeys(one.body for one in items if one.body))
    if len(texts) < 2:
        return "".join(texts)
    told: list[str] = []
    left = REPEATS_BYTES
    for text in texts[:LISTED]:
        part = cut(text, REPEAT_BYTES, utf8)
        left -= utf8(part) + 1
        if left < 0:
            break
        told.append(part)
    if more := len(texts) - len(told):
        told.append(f"and {more} more")
    return "\n".join(told)


def _filled(template: str, item: NotifyItem, *, host: str, count: int) -> str:
    """The template with its fields filled in, in one pass: `{{title}}` in a body stays text."""
    values = {
        "title": item.title,
        "body": item.body,
        "sender": item.sender,
        "event": item.event,
        "severity": item.severity,
        "host": host,
        "count": str(count),
        "id": item.id,
    }
    return FIELD.sub(lambda found: values.get(found[1], ""), template)
