"""latticectl forget: drop the record of a plugin that is not active; its pin, version floor and data stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import ask, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl disable acme.demo && latticectl forget acme.demo",
    "latticectl forget --purge acme.demo    # its values, files, notifications, services' data too; also later",
)
_KINDS: Final = (
    ("values", "value"),
    ("files", "file"),
    ("notifications", "notification"),
    ("services", "service's directory"),
)
_PLURALS: Final = {"service's directory": "services' directories"}


def arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the plugin's id, as latticectl list shows it")
    parser.add_argument("--purge", action="store_true", help="remove the data that it left, too")
    parser.description = (
        "Drop the record of a plugin that is not active, with its grants, bindings, monitors, tasks and plans. What it "
        "stored stays unless --purge says otherwise. Its publisher and highest version stay known, and what it did "
        "stays in the audit record."
    )


def run(session: CtlSession) -> int:
    """Have the plugin forgotten, and say what data is left or went."""
    plugin_id, purge = ask.known_id(session.args.id), session.args.purge
    plain = session.client().post("plugins", "by-id", plugin_id, "forget", body={"purge": True} if purge else {})
    found = replies.mapping(plain, "reply")
    if session.screen.json_wanted:
        session.screen.json(found)
        return ExitCode.OK
    data = _data(replies.mapping(found.get("data"), "reply"))
    if not purge:
        session.screen.line(plugin_id, "forgotten")
        if data:
            session.screen.note(f"kept: {data}; latticectl forget --purge {plugin_id} removes them")
    elif found.get("forgotten"):
        session.screen.line(plugin_id, f"forgotten, removed with it: {data or 'nothing'}")
    else:
        # Forgotten before, and its bundle was found again since: only the old data could be removed.
        session.screen.line(plugin_id, f"removed: {data or 'nothing'}")
        session.screen.note("its bundle is still in the plugin directory")
    return ExitCode.OK


def _data(left: dict[str, Any]) -> str:
    """What a forgotten plugin left, such as `2 values, 1 file`; empty when nothing is left."""
    counts = [(int(left.get(name) or 0), word) for name, word in _KINDS]
    return ", ".join(
        f"{count} {word if count == 1 else _PLURALS.get(word, f'{word}s')}" for count, word in counts if count
    )
