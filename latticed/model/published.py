"""Files that a plugin publishes: their paths, and with which headers they are served (system-plugins.md, static).

A browser runs and loads nothing by itself for the types in TYPES; HTML and SVG, for which it does, need the operator's
settings.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Final

MAX_PATH_CHARACTERS: Final = 512
MAX_DEPTH: Final = 8
# Content-Security-Policy. `sandbox` gives a file an origin of its own and no scripts: what a plugin publishes cannot
# act for visitors of others at the same listener. HTML and SVG may also load styles, images, fonts and media from
# there.
FILE_POLICY: Final = "sandbox; default-src 'none'"
PAGE_POLICY: Final = f"{FILE_POLICY}; style-src 'self'; img-src 'self'; font-src 'self'; media-src 'self'"
UNSIGNED: Final = "-"
"""The publisher's name in paths for unsigned plugins; no publisher can have it."""
_SEGMENT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")

TYPES: Final = MappingProxyType(
    {
        "txt": "text/plain; charset=utf-8",
        "log": "text/plain; charset=utf-8",
        "md": "text/markdown; charset=utf-8",
        "csv": "text/csv; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "json": "application/json",
        "yaml": "application/yaml",
        "yml": "application/yaml",
        "toml": "application/toml",
        "png": "image/png",
        "jpg": "image/jpeg",
        "jpeg": "image/jpeg",
        "gif": "image/gif",
        "webp": "image/webp",
        "avif": "image/avif",
        "ico": "image/vnd.microsoft.icon",
        "woff": "font/woff",
        "woff2": "font/woff2",
        "mp3": "audio/mpeg",
        "ogg": "audio/ogg",
        "mp4": "video/mp4",
        "webm": "video/webm",
        "pdf": "application/pdf",
        "zip": "application/zip",
        "gz": "application/gzip",
        "bin": "application/octet-stream",
    }
)
HTML: Final = MappingProxyType({"html": "text/html; charset=utf-8", "htm": "text/html; charset=utf-8"})
SVG: Final = MappingProxyType({"svg": "image/svg+xml"})


def content_type(path: str, *, html: bool = False, svg: bool = False) -> str | None:
    """The Content-Type of a file by the extension of its name; None when such files are not published.

    "a/photo.JPG"  ->  "image/jpeg"
    "index.html"   ->  None, unless `html`
    "README"       ->  None
    """
    name = path.rpartition("/")[2]
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    found = TYPES.get(extension)
    if found is None and html:
        found = HTML.get(extension)
    if found is None and svg:
        found = SVG.get(extension)
    return found


def path_fault(path: str) -> str | None:
    """What is wrong with a path, as the end of a message, or None. No allowed character can be part of an encoding, so
    what is checked here is what is opened.
    """
    parts = path.split("/")
    if len(path) > MAX_PATH_CHARACTERS or len(parts) > MAX_DEPTH:
        return f"expected a path of at most {MAX_PATH_CHARACTERS} characters and {MAX_DEPTH} parts"
    if ".." in path or not all(_SEGMENT.fullmatch(part) for part in parts):
        return (
            "expected parts of A-Z a-z 0-9 _ - . joined by '/', none empty, none that begins with '.' or '-', no '..'"
        )
    return None


def policy(kind: str) -> str:
    """The Content-Security-Policy for a Content-Type."""
    return PAGE_POLICY if kind.startswith(("text/html", "image/svg")) else FILE_POLICY


def directory(publisher: str, plugin_id: str) -> str:
    """Where the files of a plugin lie beneath the directory of all: another publisher of the id must not get them."""
    return f"{publisher or UNSIGNED}/{plugin_id}"
