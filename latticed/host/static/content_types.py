"""Which files may be published, by extension, and their Content-Type (system-plugins.md, Host services: static).

A browser runs and loads nothing by itself for the types in OF; HTML and SVG, for which it does, need the operator's
settings.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

OF: Final = MappingProxyType(
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


def of(path: str, *, html: bool = False, svg: bool = False) -> str | None:
    """The Content-Type of a file by the extension of its name; None when such files are not published.

    "a/photo.JPG"  ->  "image/jpeg"
    "index.html"   ->  None, unless `html`
    "README"       ->  None
    """
    name = path.rpartition("/")[2]
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    found = OF.get(extension)
    if found is None and html:
        found = HTML.get(extension)
    if found is None and svg:
        found = SVG.get(extension)
    return found
