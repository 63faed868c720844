"""What an HTML answer may load: its own style, and styles and images of its plugin (pure).

    found = own_style.of_page(b"<style>p{color:red}</style><p>hello", "text/html; charset=utf-8")
    own_style.policy(found, "127.0.0.1:8787/acme.page/")
    # sandbox; default-src 'none'; base-uri 'none'; form-action 'none';
    # style-src 'sha256-…' 127.0.0.1:8787/acme.page/; img-src 127.0.0.1:8787/acme.page/

A page that has neither gets the policy that loads nothing (system-plugins.md, worker:route). Scripts run in none: the
policy is `sandbox` without `allow-scripts`, whatever the page says.
"""

from __future__ import annotations

import base64
import hashlib
import urllib.parse
from typing import TYPE_CHECKING, Final

from latticed.kit.value import Value
from latticed.model.errors import Problem
from latticed.settings import endpoints

if TYPE_CHECKING:
    from latticed.host.route.template import Reference

MOST_STYLES: Final = 16
"""`<style>` elements of one page: each is 53 characters of a header, of which servers in front may take 4 KiB."""
STRICT: Final = "sandbox; default-src 'none'"
SVG_POLICY: Final = f"{STRICT}; style-src 'unsafe-inline'"
"""Of an SVG that is opened by itself. Its style can load nothing, and as an image it is under no policy of its own."""
MOST_STEPS: Final = 1_024
"""Comments and tags passed over on the way to styles: a page of a megabyte can have so many that it takes 70 ms."""
_LOADS: Final = (b"<style", b"<link", b"<img", b"<picture", b"<image")
_AFTER_NAME: Final = b" \t\n\r\f/>"
"""What ends the name of a tag (HTML, 13.2.5.8 tag name state)."""
_REFERENCE: Final = b"\0"
"""Stands for a placeholder of a template; no page has it, as parsers of HTML replace it."""


class OwnStyle(Value, frozen=True):
    """What a page brings: `hashes` of its `<style>` elements, as sources of a Content-Security-Policy."""

    hashes: tuple[str, ...] = ()


def of_page(page: bytes, content_type: str) -> OwnStyle | None:
    """What a page has of style and images; None for none, and for what is no HTML in UTF-8.

    Problem plugin_error for more than MOST_STYLES elements.
    """
    if not _is_page(content_type):
        return None
    lower = page.lower()
    if not any(one in lower for one in _LOADS):
        return None
    return OwnStyle(tuple(dict.fromkeys(filter(None, map(_hash, _styles(page, lower))))))


def of_template(parts: tuple[bytes | Reference, ...], content_type: str) -> OwnStyle | None:
    """As `of_page`, of the text of a template: a `<style>` with a placeholder in it has no hash, and so no effect.

    Values cannot add one, as they are escaped. Problem source_blocked for more than MOST_STYLES elements.
    """
    page = b"".join(part if isinstance(part, bytes) else _REFERENCE for part in parts)
    try:
        return of_page(page, content_type)
    except Problem as problem:
        raise Problem("source_blocked", problem.reason) from problem


def policy(own: OwnStyle, place: str) -> str:
    """The Content-Security-Policy of a page at `place` (`own_place`; empty: nothing but its own style is loaded)."""
    styles, images = " ".join((*own.hashes, place)).strip(), place
    return (
        # default-src says nothing of these two.
        f"{STRICT}; base-uri 'none'; form-action 'none'"
        + (f"; style-src {styles}" if styles else "")
        + (f"; img-src {images}" if images else "")
    )


def with_hashes(file_policy: str, own: OwnStyle | None) -> str:
    """The policy of a published page (`model.published`), with the hashes of its own styles."""
    if own is None or not own.hashes:
        return file_policy
    return file_policy.replace("style-src 'self'", f"style-src 'self' {' '.join(own.hashes)}")


def own_place(host: str, plugin_id: str, prefix: str) -> str:
    """The source that stands for everything of a plugin on a host that was asked: `127.0.0.1:8787/acme.page/`.

    `prefix`: where it was asked; a prefix that an operator granted is a place of its own. Empty for addresses of IPv6,
    which no source can have (CSP Level 3, host-char).
    """
    found = endpoints.host(host)
    if found is None or ":" in found[0]:
        return ""
    own = f"/{plugin_id}/"
    name, port = found
    # Of what a path may have unescaped, `;` and `,` end a source (CSP Level 3, 2.3.1).
    path = urllib.parse.quote(own if prefix.startswith(own) else prefix, safe="/-._~")
    return f"{name}{'' if port is None else f':{port}'}{path}"


def _is_page(content_type: str) -> bool:
    """Whether it is HTML in UTF-8. Hashes are of the text in UTF-8, so of others none would match."""
    kind, _, parameters = content_type.partition(";")
    charset = [one.strip().lower() for one in parameters.split(";") if one.strip()]
    return kind.strip().lower() == "text/html" and charset in ([], ["charset=utf-8"])


def _styles(page: bytes, lower: bytes) -> list[bytes]:
    """The text of each `<style>` element within MOST_STEPS, in their order; `lower`: the page in lower case.

    What a parser of HTML would see differently (a `>` in an attribute, a `<style>` in a script) gets a hash of what is
    no style, which matches nothing.
    """
    found: list[bytes] = []
    at, begin = 0, lower.find(b"<style")
    for _ in range(MOST_STEPS):
        if begin < 0:
            break
        comment = lower.find(b"<!--", at, begin)
        if comment >= 0:
            # From within the opening: `<!-->` is a whole comment.
            end = lower.find(b"-->", comment + 2)
            at = end + 3
        elif lower[begin + 6 : begin + 7] not in _AFTER_NAME:
            end = at = begin + 6
        else:
            start = lower.find(b">", begin) + 1
            end = _close(lower, start) if start else -1
            if end >= 0:
                found.append(page[start:end])
            at = end + 7
        if end < 0:  # it is not closed: nothing after it is markup
            break
        if len(found) > MOST_STYLES:
            raise Problem("plugin_error", f"expected a page with at most {MOST_STYLES} <style> elements, found more")
        if begin < at:
            begin = lower.find(b"<style", at)
    return found


def _close(lower: bytes, start: int) -> int:
    """Where the `</style>` of an element begins; -1 without one within MOST_STEPS."""
    end = start - 7
    for _ in range(MOST_STEPS):
        end = lower.find(b"</style", end + 7)
        if end < 0 or lower[end + 7 : end + 8] in _AFTER_NAME:
            return end
    return -1


def _hash(style: bytes) -> str:
    """The source of a style; empty for one that a parser of HTML would change."""
    # Line ends are made one character before anything is parsed (HTML, 13.2.3.5).
    plain = style.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        plain.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    if _REFERENCE in plain:
        return ""
    return f"'sha256-{base64.b64encode(hashlib.sha256(plain).digest()).decode('ascii')}'"
