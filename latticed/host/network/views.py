"""Plans as JSON: for the plugin that planned them, and for operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latticed.kit import clock as clocks

if TYPE_CHECKING:
    from latticed.ledger.plans import PlanRow


def for_plugin(row: PlanRow) -> dict[str, Any]:
    """A plan as its own plugin sees it, without the intent."""
    return {
        "number": row.number,
        "sha256": row.sha256,
        "kind": row.kind,
        "state": row.state.value,
        "code": row.code,
        "reason": row.reason,
        "created_at": clocks.rfc3339(row.created_at),
        "updated_at": clocks.rfc3339(row.updated_at),
    }


def for_operators(row: PlanRow) -> dict[str, Any]:
    """A plan as operators see it, without the intent: whose it is, and the review to approve besides."""
    return {**for_plugin(row), "plugin": row.plugin_id, "review": row.review}


def intent(row: PlanRow) -> Any:
    """The intent of a plan, as it was given."""
    import json

    return json.loads(row.intent)["intent"]
