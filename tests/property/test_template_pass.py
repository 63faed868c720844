"""Random templates and values are rendered in one pass."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from latticed.host.route import template
from latticed.host.route.template import METHOD, PATH, Reference
from latticed.model.errors import Problem

PIECES = [
    "{{path}}",
    "{{method}}",
    "{{query:q}}",
    "{{kv:default/k}}",
    "{{nothing}}",
    "{",
    "}",
    "{{",
    "}}",
    "text",
    "ü\n",
]
VALUES = st.lists(st.sampled_from([*PIECES, "<&>", "\\", "%7b"]), max_size=6).map("".join)
REFERENCES = (PATH, METHOD, Reference("query", "q"), Reference("kv", "default", "k"))
WRITTEN = dict(zip(PIECES, REFERENCES, strict=False))


@given(st.lists(st.sampled_from([*PIECES[:5], "text", "ü\n", "} ", " {"]), max_size=12), st.tuples(*[VALUES] * 4))
def test_template_rendering_inserts_each_value_once(pieces, values):
    """Text is unchanged, references are replaced by their values, unknown ones by nothing."""
    known = dict(zip(REFERENCES, values, strict=True))
    expected = "".join(
        known[WRITTEN[piece]] if piece in WRITTEN else "" if piece == "{{nothing}}" else piece for piece in pieces
    )
    parts = template.parse("".join(pieces).encode()).parts
    assert template.render(parts, known).decode() == expected


@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
def test_template_with_any_braces_is_parsed_or_refused(source):
    """No other exception is raised; the text parts of a parsed template have no opening braces."""
    with contextlib.suppress(Problem):
        parts = template.parse(source.encode()).parts
        assert not any(b"{{" in part for part in parts if isinstance(part, bytes))


@given(st.binary(max_size=200))
def test_any_bytes_parse_as_template_or_raise_problem(source):
    """A parsed template can be rendered."""
    with contextlib.suppress(Problem):
        template.render(template.parse(source).parts, {})
