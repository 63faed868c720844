"""Templates: what they may contain, and how they are rendered in one pass."""

from __future__ import annotations

import pytest

from latticed.host.route import template
from latticed.host.route.template import METHOD, PATH, Reference
from latticed.model.errors import Problem


def rendered(source, values=None, **options):
    return template.render(template.parse(source.encode()).parts, values or {}, **options).decode()


def refused(source):
    with pytest.raises(Problem) as caught:
        template.parse(source if isinstance(source, bytes) else source.encode())
    assert caught.value.code == "source_blocked"
    return caught.value.reason


def test_template_placeholders_are_replaced():
    """Path, method, query field, stored value; white space inside the braces is ignored."""
    source = "a {{path}} b {{ method }}{{query:who}} {{kv:default/message}}!"
    values = {PATH: "/x", METHOD: "GET", Reference("query", "who"): "me", Reference("kv", "default", "message"): "hi"}
    assert rendered(source, values) == "a /x b GETme hi!"


@pytest.mark.parametrize(
    "unknown",
    [
        "{{}}",
        "{{PATH}}",
        "{{paths}}",
        "{{query:}}",
        "{{query}}",
        "{{kv:}}",
        "{{kv:a}}",
        "{{kv:/a}}",
        "{{kv:a/}}",
        "{{a:b/c}}",
    ],
)
def test_unknown_reference_renders_empty(unknown):
    """It does not refuse the template."""
    assert rendered(f"<{unknown}>", {PATH: "/x"}) == "<>"


def test_brace_beside_placeholder_is_text():
    """Of three opening braces the last two count, of three closing ones the first two."""
    assert rendered("{{{path}}}", {PATH: "/x"}) == "{/x}"
    assert "line 1" in refused("{{{{path}}}}")


def test_reference_without_value_renders_empty():
    assert rendered("<{{path}}{{kv:a/b}}>") == "<>"


@pytest.mark.parametrize("value", ["{{path}}", "{{kv:default/secret}}", "{{", "}}", "{{query:a}}{{path}}"])
def test_template_values_are_not_expanded_again(value):
    """A path or a stored value that contains a reference is text."""
    stored = Reference("kv", "default", "secret")
    assert rendered("{{path}}|{{kv:default/secret}}", {PATH: value, stored: value}) == f"{value}|{value}"


def test_adjacent_template_values_form_no_placeholder():
    """Neither with each other nor with the text around them."""
    source = "{ {{query:a}}{{query:b}}}}"
    values = {Reference("query", "a"): "{{pa", Reference("query", "b"): "th", PATH: "/x"}
    assert rendered(source, values) == "{ {{path}}"


def test_first_slash_of_a_kv_reference_ends_the_bucket():
    """The key may contain further ones."""
    (reference,) = template.parse(b"{{kv:plugin:acme.demo/a/b}}").stored
    assert reference == Reference("kv", "plugin:acme.demo", "a/b")


def test_html_values_are_escaped_and_the_template_is_not():
    assert rendered("<b>{{path}}</b>", {PATH: "<i a='\"'>&"}, escape=template.escape_html) == (
        "<b>&lt;i a=&#x27;&quot;&#x27;&gt;&amp;</b>"
    )


def test_template_references_are_listed_once():
    """Each stored value is then read once."""
    found = template.parse(b"{{kv:a/b}}{{query:c}}{{kv:a/b}}{{ kv:a/b }}{{query:c}}")
    assert (found.stored, found.queries) == ((Reference("kv", "a", "b"),), (Reference("query", "c"),))
    assert len(found.parts) == 5


@pytest.mark.parametrize("source", ["a {{path", "{{", "{{path}", "a\n{{path {{method}}", "{{ {{path}} }}"])
def test_unclosed_braces_in_template_are_refused_with_their_line(source):
    assert f"not closed in line {source.count(chr(10)) + 1}" in refused(source)


@pytest.mark.parametrize("source", ["}}", "a}}{", '{"a": {"b": 1}}', "{ {path} }", "{path}"])
def test_braces_that_form_no_placeholder_are_text(source):
    assert rendered(source) == source


@pytest.mark.parametrize("primitive", ["fetch(", "require(", "process.env", "exec(", "os."])
@pytest.mark.parametrize("around", ["{}", "x = {} 1)", "a.{}", "({}", "-{}", "{{{{path}}}}{}", "ä {}"])
def test_source_primitives_are_refused_by_name_and_line(primitive, around):
    """They are found wherever an identifier could begin."""
    detail = refused(f"one\ntwo\n{around.format(primitive)}\n")
    assert f"`{primitive}`" in detail
    assert "line 3" in detail


@pytest.mark.parametrize(
    "source",
    [
        "photos. of",
        "prefetch(1)",
        "myexec(",
        "$fetch(",
        "äos.",
        "_require(",
        "process.environment",
        "macOS.",
        "fetch (",
    ],
)
def test_words_similar_to_source_primitives_are_accepted(source):
    assert rendered(source) == source


def test_refusal_names_the_first_source_primitive():
    assert "`exec(` in line 2" in refused("a\nexec(\nfetch(\n")


def test_source_primitive_inside_placeholder_is_refused():
    """The whole source is searched."""
    assert "`os.`" in refused("{{kv:default/os.x}}")


def test_template_that_is_not_utf8_or_too_large_is_refused():
    assert "UTF-8" in refused(b"a\nb\xff")
    assert "line 2" in refused(b"a\nb\xff")
    template.parse(b"x" * template.MAX_BYTES)
    assert "at most 262144 bytes" in refused(b"x" * (template.MAX_BYTES + 1))


def test_too_many_placeholders_are_refused():
    """Too many different stored values are, too."""
    template.parse(b"{{path}}" * template.MAX_PLACEHOLDERS)
    assert "at most 1024 placeholders" in refused("{{path}}\n" * 20_000)
    template.parse(b"{{kv:a/b}}" * template.MAX_PLACEHOLDERS)
    many = "".join(f"{{{{kv:a/{number}}}}}" for number in range(template.MAX_VALUES + 1))
    assert "at most 64 different" in refused(many)


def test_too_large_a_result_is_refused_before_rendering():
    """Many placeholders times a large value may not fit into memory."""
    parts = template.parse(b"{{path}}" * 1_000).parts
    with pytest.raises(Problem) as caught:
        template.render(parts, {PATH: "x" * 4_000})
    assert caught.value.code == "output_too_large"
    assert len(template.render(parts, {PATH: "x" * 1_000}, max_bytes=1_000_000)) == 1_000_000


def test_lone_surrogate_renders_as_question_mark():
    """Values set by operators as JSON may contain one."""
    assert rendered("{{path}}", {PATH: "a\ud800b"}) == "a?b"
