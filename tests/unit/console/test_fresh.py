"""Lists that several pages share for a moment: never what was so before a change that a page was told of."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from latticed.console.live import LiveHub
from latticed.console.operator import ExplainedPlugin, HealthFinding, Reader
from latticed.console.pages import Pages
from tests.house import api_server


class Changing:
    """An operator of one plugin, whose name says how often its lists were asked for; each `change` is an event."""

    def __init__(self) -> None:
        self.asked = 0
        self.change = threading.Semaphore(0)
        self.over = False

    def ask(self, method: str, parts: tuple[str, ...], query: Mapping[str, Any], body: Mapping[str, Any]) -> Any:
        if parts not in {("plugins", "brief"), ("plugins", "rejected")}:
            return {}
        self.asked += 1
        return [{**api_server.plugin(f"acme.asked-{self.asked}"), "reason": ""}]

    def changes(self, wanted: Callable[[], bool]) -> Iterator[str]:
        while self.change.acquire() and not self.over:
            yield "acme.demo"

    def explain(self, reader: Reader, plugin_id: str) -> ExplainedPlugin:
        raise NotImplementedError

    def doctor(self) -> list[HealthFinding]:
        return []

    def review(self, plan: str) -> dict[str, Any]:
        raise NotImplementedError

    def became(self, answer: Any, *, upgraded: bool) -> tuple[str, str]:
        raise NotImplementedError

    def when(self, moment: str) -> str:
        return moment


@pytest.mark.parametrize("page", ["overview", "rejected"])
async def test_a_page_that_was_told_of_a_change_is_shown_what_is_so_since(page: str):
    """However soon after another page asked."""
    operator = Changing()
    with ThreadPoolExecutor(2) as threads:
        pages = Pages(operator, Reader(operator, act=False), threads, act=False)
        hub = LiveHub(operator.changes, pages.forget)
        listener = hub.listen()
        assert listener is not None
        for asked in (1, 2, 3):
            shown = await getattr(pages, page)({})
            assert [row["id"] if page == "rejected" else row.id for row in shown.context["page"].rows] == [
                f"acme.asked-{asked}"
            ]
            operator.change.release()
            await asyncio.wait_for(listener.ready.wait(), 30)
            listener.take()
        operator.over = True
        operator.change.release()
