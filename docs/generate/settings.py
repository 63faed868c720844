"""docs/reference/settings.md, and the rows of latticed.toml(5)."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from generate import source
from generate.markdown import Page, anchored, code, or_dash, plain, slug
from latticed.settings import live, market, places, renamed, shapes

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS: Final = (
    ("_s", "seconds"),
    ("_bytes", "bytes"),
    ("_kib", "KiB"),
    ("_mib", "MiB"),
    ("_days", "days"),
    ("_percent", "% of a core"),
    ("per_second", "calls/s"),
    ("per_hour", "in an hour"),
)
"""By the end of a key; everything else is a count, or no number."""


class Row(NamedTuple):
    """One setting. `since`: when a change of it takes effect."""

    key: str
    default: str
    kind: str
    unit: str
    bounds: str
    since: str
    meaning: str


class Section(NamedTuple):
    """One table of the file, and what its class says of it."""

    name: str
    about: str
    rows: list[Row]


def sections() -> Iterator[Section]:
    """All tables, those within tables after them; first the keys that are in none."""
    said = source.below(shapes.Settings)
    paths = [
        Row(name, "see meaning", "text", "", "an absolute path", _since(name), plain(said[name]))
        for name in places.PATHS
    ]
    yield Section("", "Keys that stand above all tables.", paths)
    for one in fields(shapes.Settings):
        if is_dataclass(one.default):
            yield from _within(one.name, one.default)


def _within(name: str, part: Any) -> Iterator[Section]:
    said = source.below(type(part))
    inner = [(key, getattr(part, key.name)) for key in fields(part)]
    rows = [
        Row(
            f"{name}.{key.name}",
            json.dumps(value, ensure_ascii=False),
            _kind(key.type),
            _unit(key.name),
            _bounds(key.metadata),
            _since(f"{name}.{key.name}"),
            plain(said[key.name]),
        )
        for key, value in inner
        if not is_dataclass(value)
    ]
    yield Section(name, plain(type(part).__doc__), rows)
    if isinstance(part, market.MarketSettings):
        yield from _within("market.sources.NAME", market.SourceSettings())
    for key, value in inner:
        if is_dataclass(value):
            yield from _within(f"{name}.{key.name}", value)


def _kind(hint: Any) -> str:
    text = str(hint)
    if text.startswith("dict[str, SourceSettings"):
        return "tables"
    words = {"int": "integer", "float": "number", "bool": "boolean", "str": "text", "tuple[str, ...]": "list of text"}
    return words.get(text, "table of lists" if "tuple" in text else "table of text")


def _unit(name: str) -> str:
    return next((unit for end, unit in UNITS if name.endswith(end)), "")


def _bounds(rules: Any) -> str:
    if rules["low"] is not None:
        return f"{_number(rules['low'])} to {_number(rules['high'])}"
    if rules["one_of"]:
        return ", ".join(rules["one_of"])
    if rules["fault"] is None:
        return ""
    # What a value has to be is what the rule says of one that is not.
    for wrong in ("\0", ("\0",), {"\0": ""}):
        try:
            if said := rules["fault"](wrong):
                return str(said)
        except (AttributeError, TypeError):
            continue
    return ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _since(key: str) -> str:
    if key.partition(".")[0] in live.OTHERS:
        return "start of latticed-apply"
    return "reload" if live.takes_effect(key) else "restart"


def page() -> str:
    """The page."""
    found = Page(
        "Settings",
        "What stands in `/etc/latticed/latticed.toml`, table by table. A file needs only what differs from the"
        " defaults:",
    )
    found.block(
        "toml",
        'plugin_dir = "/var/lib/latticed-plugins"\n\n[supervision]\ndrain_s = 20   # seconds\n\n[access]\n'
        'own_user = false\n\n[access.groups]\nadm = ["read"]',
    )
    found.text(
        "`latticed --check-config` prints each setting in force, where it came from, and whether a change of it needs a"
        " restart; an unknown key or a bad value is an error that names the key and what was expected.",
        "*Takes effect* says when a change counts: at a `reload` (the daemon sees a changed file within two seconds or"
        " so; limits hold for what is started from then on), or at a `restart`. Sizes end in `_bytes`, `_kib` or"
        " `_mib`, times in `_s` (seconds) or `_days`; `plugin_…` is for one plugin, `total_…` for all together.",
    )
    found.items(f"[`[{one.name}]`](#{slug('settings', one.name)}): {one.about}" for one in sections() if one.name)
    for section in sections():
        title = f"[{section.name}]" if section.name else "Directories and the trust policy"
        found.heading(title, anchor=slug("settings", section.name or "paths"))
        found.text(section.about)
        found.table(
            ("key", "default", "type", "unit", "allowed", "takes effect", "meaning"),
            [
                (
                    anchored(slug("setting", row.key), code(row.key.rpartition(".")[2])),
                    row.default if row.default == "see meaning" else code(row.default),
                    row.kind,
                    or_dash(row.unit),
                    or_dash(row.bounds),
                    row.since,
                    row.meaning,
                )
                for row in section.rows
            ],
        )
    found.heading("Environment variables", anchor="environment-variables")
    found.text(
        "The first five win over the file; the file wins over the last two, which systemd sets by `StateDirectory=` and"
        " `RuntimeDirectory=`. latticectl's own are [on its page](cli.md#environment)."
    )
    found.table(("variable", "sets"), [(code(name), code(key)) for name, key in variables()])
    found.heading("Renamed keys", anchor="renamed-keys")
    found.text("An old name is taken for one version; `latticed --check-config` says which line to change.")
    found.table(
        ("old key", "key now", "value"),
        [
            (code(old), code(new), f"{factor} times" if factor > 1 else "the same")
            for old, (new, factor) in renamed.RENAMED.items()
        ],
    )
    return str(found)


def variables() -> Iterator[tuple[str, str]]:
    """(variable, the key that it sets)."""
    for names in (places.ENVIRONMENT, places.SYSTEMD):
        yield from ((name, key) for key, name in names.items())


def anchor(key: str) -> str:
    """Where a key stands on the page."""
    return slug("setting", key)


KEY: Final = re.compile(r"[a-z_]+(?:\.[a-z_]+)+")
