"""Text from outside in every field of every page: it is read, and changes nothing of the page."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import pytest

from latticed.console import forwarded, templates
from latticed.console.operator import ExplainedPlugin, HealthFinding, Reader
from latticed.console.pages import HtmlPage, Pages
from latticed.fleet import controller_view
from latticed.model.errors import Problem
from tests.house import corpora, filled_answers

BENIGN = "word"
HTML = templates.environment()
MARKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "&lt;b&gt;&#x22;",
    "--><!--",
    "]]>",
    "\u202egnp.exe\u2066\u200b\u2028",
    "\x1b]0;title\x07\x9b31m\x00",
    "word" * 16_384,
]
UNSEEN = {"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"}
ID = "acme.demo"
FLEET = {
    "fleet": controller_view.FleetView,
    "fleet/nodes": controller_view.NodesPage,
    "fleet/nodes/{node}": controller_view.NodeView,
    "fleet/events": controller_view.EventsPage,
}
"""What a controller answers by route."""
PLAN = "ab" * 32


@dataclass
class Saying:
    """An operator of whom every answer says `text` wherever there is a text."""

    text: str

    def ask(self, method: str, parts: tuple[str, ...], query: Mapping[str, Any], body: Mapping[str, Any]) -> Any:
        route = forwarded.route(method, parts, act=True)
        if route in forwarded.FLEET:
            return filled_answers.of_shape(FLEET[route.template], self.text)
        path = next(one for one in filled_paths() if one == f"/api/{route.template}")
        return _known(filled_answers.of(method, path, self.text), parts[0], self.text)

    def changes(self, wanted: Callable[[], bool]) -> Iterator[str]:
        return iter(())

    def explain(self, reader: Reader, plugin_id: str) -> ExplainedPlugin:
        return ExplainedPlugin([(self.text, self.text, "bad")], self.text, self.text)

    def doctor(self) -> list[HealthFinding]:
        return [HealthFinding(self.text, "look", self.text, self.text)]

    def review(self, plan: str) -> dict[str, Any]:
        names = ("plan", "kind", "state", "review", "diff")
        finding = dict.fromkeys(("code", "expected", "found"), self.text)
        more = {"findings": [finding], "overridden": [finding], "deadline_s": 30.0}
        return {**dict.fromkeys((*names, "target", "narrows", "approve", "overrides"), self.text), **more}

    def became(self, answer: Any, *, upgraded: bool) -> tuple[str, str]:
        return "bad", self.text

    def when(self, moment: str) -> str:
        return moment


def _known(answer: Any, noun: str, text: str) -> Any:
    """With states that the pages know, so that they offer what they would; and what consent is about."""
    if isinstance(answer, list):
        return [_known(one, noun, text) for one in answer]
    if not isinstance(answer, dict):
        return answer
    states = {"plugins": ("active", "armed"), "tasks": ("failed", "submitted"), "notifications": ("failed", "failing")}
    status, state = states.get(noun, (text, text))
    names = ["kv:write", "http:egress", text]
    known = {"status": status, "state": state, "capabilities": names, "must_name": names[:1], "must_accept": names}
    return {name: known[name] if name in known else _known(one, noun, text) for name, one in answer.items()}


def filled_paths() -> set[str]:
    return {f"/api/{one.template}" for one in (*forwarded.READING, *forwarded.ACTING)}


class Structure(HTMLParser):
    """Elements with the names of their attributes, links by where they lead, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: set[tuple[str, tuple[str, ...]]] = set()
        self.leads: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add((tag, tuple(name for name, _ in attrs)))
        self.leads |= {str(value).split("/")[0] for name, value in attrs if name in {"href", "src", "action"}}
        self.text += [str(value) for _, value in attrs]

    def handle_comment(self, data: str) -> None:
        self.elements.add(("comment", ()))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


async def every_page(text: str) -> dict[str, str]:
    """The HTML of every page."""
    html = HTML
    operator = Saying(text)
    html.globals.update(base="/base", act=True, with_fleet=True, when=operator.when, may_consent=forwarded.may_consent)
    with ThreadPoolExecutor(4) as threads:
        pages = Pages(operator, Reader(operator, act=True), threads, act=True)
        query = {"q": text[:1], "actor": text}
        found: list[HtmlPage] = [
            await pages.overview({}),
            await pages.overview(query),
            await pages.plugin({}, ID),
            await pages.logs({}, ID),
            await pages.log_lines({"after": text}, ID),
            await pages.rejected(query),
            await pages.market(query),
            await pages.offer({}, ID),
            await pages.plans(query),
            await pages.plan({}, PLAN),
            await pages.tasks({}),
            await pages.task({}, "5c0f"),
            await pages.audit(query),
            await pages.notifications({}),
            await pages.health({}),
            await pages.fleet({"after": text}),
            await pages.fleet_node({}, "web-1"),
        ]
    notes = [("bad", text)]
    problem = Problem(text, text, text)
    found.append(HtmlPage("failed", {"problem": problem, "outside": False}))
    shown = {}
    for number, one in enumerate(found):
        template = html.get_template(f"{one.template}.html")
        shown[f"{number} {one.template}"] = template.render(notes=notes, live=one.live, **one.context)
    return shown


def structure(html: str) -> Structure:
    found = Structure()
    found.feed(html)
    found.close()
    return found


@pytest.fixture(scope="module")
def benign() -> dict[str, str]:
    return asyncio.run(every_page(BENIGN))


def hostile_texts() -> list[str]:
    try:
        rows = corpora.rows("text_injection.json")
    except pytest.skip.Exception:
        rows = []
    # One of each class is enough for what passes the same two escapes; all of them together in one text besides.
    classes = {row["cls"]: row["s"] for row in rows if row["s"].strip()}
    return [*MARKS, *classes.values(), "".join(row["s"] for row in rows)[:4_000] or BENIGN]


@pytest.mark.parametrize("text", hostile_texts(), ids=lambda text: repr(text)[:30])
def test_no_text_changes_the_structure_of_a_page(benign: dict[str, str], text: str):
    """The same elements with the same attributes, no link that leads elsewhere, and nothing that cannot be seen."""
    found = asyncio.run(every_page(text))
    assert found.keys() == benign.keys()
    for name, html in found.items():
        here, wanted = structure(html), structure(benign[name])
        assert here.elements <= wanted.elements | POSSIBLE, name
        assert here.leads <= {"", "#main"}, name
        unseen = {char for char in html if unicodedata.category(char) in UNSEEN and char != "\n"}
        assert not unseen, name
        assert len(html) < 2_000_000, name


# Where a state is not one that a page knows, or a list is empty, other words of our own stand there.
POSSIBLE = {("strong", ()), ("p", ()), ("br", ()), ("td", ("colspan",)), ("li", ()), ("div", ("class",))}


def test_what_is_shown_is_what_was_said(benign: dict[str, str]):
    """Every page shows the text, so that the comparison above compares something."""
    for name, html in benign.items():
        assert BENIGN in " ".join(structure(html).text), name
        assert "script" not in {tag for tag, _ in structure(html).elements} or 'type="module"' in html, name


def test_a_name_that_a_template_misspells_is_an_error():
    with pytest.raises(Exception, match="is undefined"):
        templates.environment().from_string("{{ nmae }}").render(name="x")
