"""Whether words are in the beginning of a body, as its content coding and charset write them.

What cannot be read here says nothing about the target: that is told apart from words that are not there.
"""

from __future__ import annotations

import codecs
import zlib
from dataclasses import dataclass
from typing import Final, Literal

_GZIP: Final = frozenset({"gzip", "x-gzip"})
_CODINGS: Final = frozenset({"", "identity", "deflate", *_GZIP})
_CHARSETS: Final = frozenset(
    "utf-8 utf-8-sig utf-16 utf-16-le utf-16-be utf-32 utf-32-le utf-32-be koi8-r koi8-u tis-620 gb2312 gbk gb18030 "
    "big5 big5hkscs euc_jp iso2022_jp shift_jis cp932 euc_kr cp949 cp866 cp874 mac-roman mac-cyrillic".split()
    + [f"iso8859-{part}" for part in (*range(2, 12), *range(13, 17))]
    + [f"cp125{part}" for part in range(9)]
)
"""By the names of Python's codecs; others are slow with what is not meant for them, or no charsets at all."""
_AS_BROWSERS_READ: Final = {"iso8859-1": "cp1252", "ascii": "cp1252"}
"""The WHATWG Encoding Standard, section 4.2: both labels mean windows-1252."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`up`: the words are there; `down`: they are not; `error`: not to be told from here, and why."""

    outcome: Literal["up", "down", "error"]
    code: str = ""
    reason: str = ""


class Search:
    """Feed it the body as it comes; `finding` is set as soon as nothing further can change it.

    At most `limit` bytes are looked at, before and after decoding.
    """

    def __init__(self, words: str, *, coding: str, charset: str | None, limit: int) -> None:
        self.finding: Finding | None = None
        self._words = words
        self._limit = limit
        self._raw_bytes = 0
        self._bytes = 0
        self._tail = ""
        self._unread = False
        self._assumed = charset is None
        self._coding = coding.strip().lower()
        self._inflater: zlib._Decompress | None = None  # of the member under way
        name = _codec("utf-8" if charset is None else charset)
        if self._coding not in _CODINGS:
            self._unjudged("content_coding", f"the body comes in the Content-Encoding {self._coding}")
        elif name is None:
            self._unjudged("charset_unknown", f"the body comes in the charset {charset}")
        self._decoder = codecs.getincrementaldecoder(name or "utf-8")(errors="replace")

    def feed(self, data: bytes) -> None:
        """The next part of the body."""
        self._raw_bytes += len(data)
        try:
            while data and self.finding is None:
                content, data = self._content(data)
                self._look(content)
        except zlib.error:
            self.finding = Finding(outcome="down", code="protocol_error", reason="the body is not what it says it is")
        if self.finding is None and self._raw_bytes > self._limit:
            self._too_large()

    def end(self) -> Finding:
        """The body is over; what was found."""
        if self.finding is not None:
            return self.finding
        if self._inflater is not None and not self._inflater.eof:
            return Finding(outcome="down", code="protocol_error", reason="the body ends too early")
        if self._unread and not self._words.isascii():
            return Finding(outcome="error", code="charset_unknown", reason="it names no charset and is not UTF-8")
        return Finding(outcome="down", code="body_mismatch", reason="expected words are not in the body")

    def _content(self, data: bytes) -> tuple[bytes, bytes]:
        """What of the content this part of the body is, and what of it is still to be looked at."""
        if self._coding in {"", "identity"}:
            return data, b""
        if self._inflater is None:
            # deflate is named after zlib's format and often sent without its header (RFC 9110, section 8.4.1.2).
            raw = self._coding == "deflate" and data[0] & 0x0F != 8
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 32)
        inflater = self._inflater
        content = inflater.decompress(data, self._limit + 1 - self._bytes)
        if not inflater.eof:
            return content, inflater.unconsumed_tail
        if self._coding in _GZIP and inflater.unused_data:  # of several members (RFC 1952, section 2.2)
            self._inflater = None
            return content, inflater.unused_data
        return content, b""

    def _look(self, content: bytes) -> None:
        room = self._limit - self._bytes
        self._bytes += len(content)
        text = self._decoder.decode(content[:room])
        self._unread |= self._assumed and "\ufffd" in text
        seen = self._tail + text
        if self._words in seen:
            self.finding = Finding(outcome="up")
        elif len(content) > room:
            self._too_large()
        self._tail = seen[max(len(seen) - len(self._words) + 1, 0) :]

    def _too_large(self) -> None:
        reason = f"expected words are not in the first {self._limit >> 10} KiB of the body, and no more is looked at"
        self._unjudged("body_too_large", reason)

    def _unjudged(self, code: str, reason: str) -> None:
        self.finding = Finding(outcome="error", code=code, reason=reason)


def _codec(charset: str) -> str | None:
    """The codec of a charset that is read, or None."""
    try:
        name = codecs.lookup(charset.strip("\"' ")).name
    except (LookupError, ValueError):
        return None
    name = _AS_BROWSERS_READ.get(name, name)
    return name if name in _CHARSETS else None
