"""The part of nginx's language that renderings use: directives, blocks, words that need no quotes, and quoted ones.

    Directive("server", block=(Directive("listen", ("80",)),))    server {
                                                                      listen 80;
                                                                  }

What the language has besides (escapes, comments within a line, lua blocks) is refused by `read`, never guessed at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

INDENT: Final = "    "
_PLAIN: Final = re.compile(r"[^\x00-\x20\x7f-\U0010ffff;{}\"'\\#]+")
_QUOTED: Final = re.compile(r"[ -!#-\[\]-~]*")  # printable ASCII without `"` and `\`
_TOKEN: Final = re.compile(r"\n|[ ]+|[;{}]|\"[ -!#-\[\]-~]*\"(?=[ ;])|[^\x00-\x20\x7f-\U0010ffff;{}\"'\\#]+(?=[ ;])")
_MAX_DEPTH: Final = 8


@dataclass(frozen=True, slots=True)
class Directive:
    """`block`: None for a simple one, which ends with a semicolon."""

    name: str
    args: tuple[str, ...] = ()
    block: tuple[Directive, ...] | None = None


def text(directives: Iterable[Directive]) -> str:
    """The directives as a file. ValueError for a word that the language could take for something else."""
    return "".join(_lines(directives, ""))


def read(source: str) -> tuple[Directive, ...]:
    """What `text` wrote, lines that begin with `#` left out; ValueError for anything else."""
    lines = (line for line in source.splitlines(keepends=True) if not line.startswith("#"))
    return _block(_tokens("".join(lines)), 0)


def _lines(directives: Iterable[Directive], indent: str) -> Iterator[str]:
    for one in directives:
        words = " ".join([_word(one.name), *(_word(arg) for arg in one.args)])
        if one.block is None:
            yield f"{indent}{words};\n"
            continue
        yield f"{indent}{words} {{\n"
        yield from _lines(one.block, indent + INDENT)
        yield f"{indent}}}\n"


def _word(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    if not _QUOTED.fullmatch(value):
        raise ValueError(f"no word of nginx's language: {ascii(value)[:80]}")
    return f'"{value}"'


def _tokens(source: str) -> Iterator[str]:
    at = 0
    while at < len(source):
        found = _TOKEN.match(source, at)
        if found is None:
            raise ValueError(f"not of our writing: {source[at : at + 40]!a}")
        at = found.end()
        if not found[0].isspace():
            yield found[0]


def _block(tokens: Iterator[str], depth: int) -> tuple[Directive, ...]:
    found: list[Directive] = []
    words: list[str] = []
    for token in tokens:
        if token == "}":  # noqa: S105 - a token of a language
            if depth == 0 or words:
                raise ValueError("a block ends that has not begun, or in a directive")
            return tuple(found)
        if token not in {";", "{"}:
            words.append(token.strip('"'))
            continue
        if not words or depth == _MAX_DEPTH:
            raise ValueError("a directive without a name, or blocks too deep")
        block = _block(tokens, depth + 1) if token == "{" else None  # noqa: S105 - a token of a language
        found.append(Directive(words[0], tuple(words[1:]), block))
        words = []
    if depth or words:
        raise ValueError("the text ends in a block or directive")
    return tuple(found)
