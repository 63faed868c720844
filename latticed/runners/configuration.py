"""An operator's configuration of one plugin: a JSON object, and what of it does not fit the manifest's schema."""

from __future__ import annotations

import hashlib
import itertools
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed import wire
from latticed.kit import text
from latticed.kit.strict_json import MAX_INTEGER
from latticed.kit.value import Value
from latticed.model import accepted
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.model.manifest import Manifest

MAX_FAULTS: Final = 20
"""How many faults of a document are listed; the rest is only said to exist."""
EMPTY: Final = b"{}"
"""What a plugin gets for which nothing is set."""

Path = tuple[str | int, ...]

# Sorted keys: the hash must not depend on the order in which the operator wrote them.
_encode: Final = msgspec.json.Encoder(order="deterministic").encode
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]{0,63}")
# Whatever looks like a reference to a secret, then those that are well-formed: `${secret:NAME}` or `${secret:NAME#…}`.
_REFERENCE: Final = re.compile(r"\$\{secret:([^{}]*)\}?")
_NAMED: Final = re.compile(r"\$\{secret:([A-Z][A-Z0-9_]{0,63})(?:#[^{}\x00-\x20\x7f]{1,128})?\}")
_PATH_CHARACTERS: Final = 200


class ConfigFault(Value, frozen=True, kw_only=True):
    """What does not fit at one place: `found` may quote the document, `kind` says the same without its values."""

    path: Path
    expected: str
    found: str
    kind: str

    @property
    def where(self) -> str:
        """The place, such as `rules[3].port`; `the document` if the fault is about all of it."""
        return place(self.path) or "the document"

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}"

    @property
    def discreet(self) -> str:
        """As `str`, without values: for the audit, and for callers who may not see the configuration."""
        return f"{self.where}: expected {self.expected}, found {self.kind}"


class Configuration(Value, frozen=True, kw_only=True):
    """A document as it is kept: compact JSON with sorted keys, and its SHA-256 in hex."""

    data: bytes
    sha256: str

    @classmethod
    def of(cls, document: dict[str, Any]) -> Configuration:
        """The configuration with this JSON object.

        Problems: config_invalid for integers beyond ±(2^53-1) and for malformed references to secrets; too_large.
        """
        # One more than is listed says whether the list is whole.
        found = tuple(itertools.islice(_faults(document, ()), MAX_FAULTS + 1))
        if found:
            raise ConfigInvalid(found[:MAX_FAULTS], whole=len(found) <= MAX_FAULTS)
        data = _encode(document)
        if len(data) > wire.MAX_CONFIG_BYTES:
            raise Problem(
                "too_large", f"expected a configuration of at most {wire.MAX_CONFIG_BYTES} bytes, found {len(data)}"
            )
        return cls(data=data, sha256=hashlib.sha256(data).hexdigest())


class ConfigInvalid(Problem):
    """A document that does not fit: Problem config_invalid with all that is wrong, MAX_FAULTS at most.

    `whole` is False when there is more. The reason of the Problem quotes no value.
    """

    def __init__(self, faults: tuple[ConfigFault, ...], *, whole: bool = True) -> None:
        several = f"{'' if whole else 'more than '}{len(faults)} fault{'' if len(faults) == 1 and whole else 's'}"
        super().__init__("config_invalid", f"expected a configuration that fits the plugin's schema, found {several}")
        self.faults = faults
        self.whole = whole


def takes_config(manifest: Manifest) -> bool:
    """Whether a plugin gets a configuration: it declares a schema, and its protocol carries one (contracts §10)."""
    return bool(manifest.config) and accepted.protocol_of(manifest) in {"latticed-stdio-1", accepted.BUILTIN}


def schema_of(manifest: Manifest) -> Configuration:
    """A manifest's schema as canonical bytes with their SHA-256, by which a row says what it was checked against."""
    data = _encode(manifest.config)
    return Configuration(data=data, sha256=hashlib.sha256(data).hexdigest())


def place(path: Path) -> str:
    """A place in a document: `rules[3].port`, `zones["a.b"].name`; empty for the document itself.

    Keys are escaped, and the whole is cut to _PATH_CHARACTERS: the document is not trusted.
    """
    said = ""
    for step in path:
        if isinstance(step, int):
            said += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            said += f".{step}" if said else step
        else:
            said += f'["{text.sanitise(step, 64)}"]'
    return text.clip(said, _PATH_CHARACTERS)


def secrets_of(document: Any) -> list[str]:
    """The names of the secrets that a document refers to, sorted."""
    return sorted({name for value in _strings(document) for name in _NAMED.findall(value)})


def _faults(value: Any, path: Path) -> Iterator[ConfigFault]:
    """What no schema allows: integers that other readers of JSON would round, and malformed references to secrets."""
    match value:
        case dict():
            for key, inner in value.items():
                yield from _faults(inner, (*path, key))
        case list():
            for number, inner in enumerate(value):
                yield from _faults(inner, (*path, number))
        case bool():  # before int, of which Python makes it a subclass
            return
        case int() if abs(value) > MAX_INTEGER:
            # RFC 8259 section 6: other readers would round it without a word.
            found = text.clip(str(value), 40)
            yield ConfigFault(path=path, expected="an integer within ±(2^53-1)", found=found, kind="another one")
        # Malformed if something that looks like a reference is none: removing either kind then leaves different texts.
        case str() if "${secret:" in value and _REFERENCE.sub("", value) != _NAMED.sub("", value):
            wrong = next(found[0] for found in _REFERENCE.finditer(value) if not _NAMED.fullmatch(found[0]))
            expected = "references to secrets such as ${secret:NAME}"
            yield ConfigFault(path=path, expected=expected, found=text.sanitise(wrong, 80), kind="another one")


def _strings(value: Any) -> Iterator[str]:
    """All strings that are values in a document, at any depth; keys are left out."""
    match value:
        case dict():
            for inner in value.values():
                yield from _strings(inner)
        case list():
            for inner in value:
                yield from _strings(inner)
        case str():
            yield value
