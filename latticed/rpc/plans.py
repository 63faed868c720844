"""Handlers for plans: changes of the host that plugins ask for, as the root helper reported them last.

They only show. A plan is reviewed, approved, refused, applied, confirmed and rolled back on the helper's own socket
(contracts §12): the daemon may do none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, cast

from msgspec import Meta

from latticed.host.network import views
from latticed.rpc.api import QueryParams
from latticed.rpc.running import known

if TYPE_CHECKING:
    from latticed.rpc.api import Ask

State = Literal[
    "planned", "approved", "applying", "unconfirmed", "applied", "rolled_back", "failed", "stale", "refused"
]


class PlanFilter(QueryParams, frozen=True):
    """Selects at most `limit` plans by state and plugin, newest first; `after`: the `next` of the previous page."""

    state: State | None = None
    plugin: str | None = None
    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class PlanSummary(TypedDict):
    """A change that a plugin asks for. `sha256` names it; `review` is the one that is approved, or empty. `code` and
    `reason` say why it was not taken, failed or was undone.
    """

    number: int
    plugin: str
    sha256: str
    kind: str
    state: str
    review: str
    code: str
    reason: str
    created_at: str
    updated_at: str


class PlanPage(TypedDict):
    """`next` is what `after` must be for the following page, null on the last. `helper`: why the root helper cannot be
    asked, so that states may have changed since; empty when it answers.
    """

    plans: list[PlanSummary]
    next: int | None
    helper: str


class PlanWhole(PlanSummary):
    """`plugins`: all that asked for this change. Secrets in `intent` are references. `helper`: as in the list."""

    plugins: list[str]
    intent: dict[str, Any]
    helper: str


async def listing(ask: Ask) -> PlanPage:
    """Plans by state and plugin, newest first, without intents."""
    wanted = ask.query(PlanFilter)
    plans = ask.api.plans
    await plans.refresh()
    # One more than is shown, which tells whether another page follows.
    found = await plans.newest(plugin_id=wanted.plugin, state=wanted.state, before=wanted.after, limit=wanted.limit + 1)
    # Those of a plugin that is gone from the records are still shown.
    if wanted.plugin is not None and not found:
        known(ask, wanted.plugin, forgotten=True)
    page = found[: wanted.limit]
    rows = [cast("PlanSummary", views.for_operators(row)) for row in page]
    return {"plans": rows, "next": page[-1].number if len(found) > len(page) else None, "helper": plans.trouble}


async def show(ask: Ask) -> PlanWhole:
    """One plan by its whole digest, with what was asked for."""
    plans = ask.api.plans
    await plans.refresh()
    found = plans.named(ask.part("sha"))
    plain = {
        **views.for_operators(found[0]),
        "plugins": sorted({row.plugin_id for row in found}),
        "intent": views.intent(found[0]),
        "helper": plans.trouble,
    }
    return cast("PlanWhole", plain)
