"""Whether an expected text (the "words") is in the beginning of a body, after decoding content coding and charset.

    coding "gzip", charset None, body gzip("all is well"), words "is well"  ->  BodyFinding("found")
    coding "br"                                                             ->  BodyFinding("coding", "br")

A body that cannot be decoded here is reported apart from one without the words: `rules` counts the first as an error of
the check, the second as down.
"""

from __future__ import annotations

import codecs
import zlib
from dataclasses import dataclass
from typing import Final, Literal

from latticed.host.egress.body import MAX_MEMBERS

# Content codings that can be decoded here (RFC 9110, section 8.4.1); `x-gzip` is an old name of gzip.
_GZIP: Final = frozenset({"gzip", "x-gzip"})
_CODINGS: Final = frozenset({"", "identity", "deflate", *_GZIP})
_CHARSETS: Final = frozenset(
    "utf-8 utf-8-sig utf-16 utf-16-le utf-16-be utf-32 utf-32-le utf-32-be koi8-r koi8-u tis-620 gb2312 gbk gb18030 "
    "big5 big5hkscs euc_jp iso2022_jp shift_jis cp932 euc_kr cp949 cp866 cp874 mac-roman mac-cyrillic".split()
    + [f"iso8859-{part}" for part in (*range(2, 12), *range(13, 17))]
    + [f"cp125{part}" for part in range(9)]
)
"""By the names of Python's codecs. Others are no charsets (`zlib`, `rot13`), or take very long with some inputs."""
_AS_BROWSERS_READ: Final = {"iso8859-1": "cp1252", "ascii": "cp1252"}
"""The WHATWG Encoding Standard, section 4.2: both labels mean windows-1252."""


@dataclass(frozen=True, slots=True)
class BodyFinding:
    """`found`, `absent`; `corrupt`: it cannot be decompressed; `cut_short`: the compressed data end too early;
    `too_large`: the words are not in the first `detail` KiB; `coding`, `charset`: `detail` is one that is not
    supported; `no_charset`: the body names none, and is not UTF-8.
    """

    kind: Literal["found", "absent", "corrupt", "cut_short", "too_large", "coding", "charset", "no_charset"]
    detail: str = ""


class BodySearch:
    """Takes a body in parts; `finding` is set as soon as later parts cannot change it, and feeding can stop then.

    `words` is not empty. `coding` is the value of Content-Encoding, empty when absent; `charset` that of the response,
    None when it names none: then UTF-8 is assumed. An unsupported one sets `finding` at once; nothing raises.

    At most `limit` bytes are searched, counted both before and after decompression, and MAX_MEMBERS members of gzip.
    """

    def __init__(self, words: str, *, coding: str, charset: str | None, limit: int) -> None:
        self.finding: BodyFinding | None = None
        self._words = words
        self._limit = limit
        self._raw_bytes = 0  # received
        self._bytes = 0  # decompressed
        self._tail = ""  # the end of the text that was searched: words may begin in it
        self._undecodable = False  # UTF-8 was assumed, and is not what came
        self._charset_assumed = charset is None
        self._coding = coding.strip().lower()
        self._inflater: zlib._Decompress | None = None  # of the current gzip member
        self._members = 0
        name = _codec("utf-8" if charset is None else charset)
        if self._coding not in _CODINGS:
            self.finding = BodyFinding("coding", self._coding)
        elif name is None:
            self.finding = BodyFinding("charset", str(charset))
        # Incremental: a part may end within a character. "replace": one bad byte elsewhere must not hide the words.
        self._decoder = codecs.getincrementaldecoder(name or "utf-8")(errors="replace")

    def feed(self, data: bytes) -> None:
        """Take the next part of the body, as received (undecoded). Does nothing once `finding` is set."""
        self._raw_bytes += len(data)
        try:
            # Once per gzip member, or once for anything else. A finding ends the loop, so a decompression bomb costs at
            # most the limit (see `_content`).
            while data and self.finding is None:
                if self._members > MAX_MEMBERS:
                    self._too_large()
                    return
                content, data = self._content(data)
                self._search(content)
        # A wrong checksum, too: the body is not what its sender compressed.
        except zlib.error:
            self.finding = BodyFinding("corrupt")
        # The raw bytes are bounded, too: a compressed block may be empty, and a stream of such never reaches the other
        # bounds.
        if self.finding is None and self._raw_bytes > self._limit:
            self._too_large()

    def end(self) -> BodyFinding:
        """The finding at the end of the body; to be called once, after the last `feed`."""
        if self.finding is not None:
            return self.finding
        if self._inflater is not None and not self._inflater.eof:
            return BodyFinding("cut_short")
        # ASCII words would have been found: most charsets encode ASCII as UTF-8 does. For others it is not known.
        if self._undecodable and not self._words.isascii():
            return BodyFinding("no_charset")
        return BodyFinding("absent")

    def _content(self, data: bytes) -> tuple[bytes, bytes]:
        """(content, the rest of `data`): the next decompressed bytes, and what has not been decompressed yet."""
        if self._coding in {"", "identity"}:
            return data, b""
        if self._inflater is None:
            # deflate is named after zlib's format and often sent without its header (RFC 9110, section 8.4.1.2).
            # A zlib header begins with the method 8 in its low four bits (RFC 1950, section 2.2); a compressed block of
            # RFC 1951 would rarely have it. windowBits of inflateInit2 (zlib.h): negative is without header, + 32
            # detects a zlib or gzip header.
            raw = self._coding == "deflate" and data[0] & 0x0F != 8
            self._members += 1
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 32)
        inflater = self._inflater
        # One byte more than may be searched, so that `_search` sees that there is more. Never 0, which would mean
        # without bound: `_bytes` is at most the limit while there is no finding.
        content = inflater.decompress(data, self._limit + 1 - self._bytes)
        if not inflater.eof:
            return content, inflater.unconsumed_tail
        if self._coding in _GZIP and inflater.unused_data:  # of several members (RFC 1952, section 2.2)
            self._inflater = None
            return content, inflater.unused_data
        return content, b""

    def _search(self, content: bytes) -> None:
        """Look for the words in the next decoded bytes. Sets `finding` when they are there, or when the limit is
        passed.
        """
        # Only what is within the limit is searched, so that the result does not depend on how the body was split.
        left = self._limit - self._bytes
        self._bytes += len(content)
        text = self._decoder.decode(content[:left])
        self._undecodable |= self._charset_assumed and "\ufffd" in text
        searched = self._tail + text
        if self._words in searched:
            self.finding = BodyFinding("found")
        elif len(content) > left:
            self._too_large()
        # Words may begin in one part and end in the next: all but one of their characters are kept.
        self._tail = searched[max(len(searched) - len(self._words) + 1, 0) :]

    def _too_large(self) -> None:
        """Set `finding`: the words are not in what may be searched, and there is more."""
        self.finding = BodyFinding("too_large", str(self._limit >> 10))


def _codec(charset: str) -> str | None:
    """Python's name of the codec for a charset as the response names it, or None when it is not supported."""
    try:
        name = codecs.lookup(charset.strip("\"' ")).name
    # ValueError: a NUL in the name. The name comes from the peer.
    except (LookupError, ValueError):
        return None
    name = _AS_BROWSERS_READ.get(name, name)
    return name if name in _CHARSETS else None
