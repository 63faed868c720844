"""What a bundle that is being taken has behind it, on one line of a terminal, while the daemon takes it."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import replies
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.ctl.session import CtlSession

EVERY_S: Final = 0.5
_KIB: Final = 1024


@contextlib.contextmanager
def shown(session: CtlSession, plugin_id: str) -> Iterator[None]:
    """Show it while the block asks for the bundle; nothing where stderr is no terminal. The line is gone at the end."""
    if not session.screen.err.isatty():
        yield
        return
    over = threading.Event()
    # Its own connection: the request of the block has the other one until the bundle is there.
    telling = threading.Thread(target=_tell, args=(session, plugin_id, over), name="market progress", daemon=True)
    telling.start()
    try:
        yield
    finally:
        over.set()
        telling.join()
        session.screen.err.write("\r\x1b[K")
        session.screen.err.flush()


def _tell(session: CtlSession, plugin_id: str, over: threading.Event) -> None:
    """Ask and rewrite the line until `over`. A daemon that does not answer this fails the request itself, too."""
    client = session.client()
    while not over.wait(EVERY_S):
        try:
            plain = replies.mapping(client.get("market"), "market")
            taking = replies.rows(plain.get("taking"), "list of what is taken")
        except Problem:
            continue
        for one in taking:
            if one.get("id") == plugin_id:
                session.screen.err.write(f"\r\x1b[K{line(one)}")
                session.screen.err.flush()


def line(taking: dict[str, Any]) -> str:
    """One line, such as `acme.demo 1.2.0: index, publisher passed; artifact 1,024 KiB`, without control characters."""
    from latticed.kit import text

    passed = ", ".join(str(one.get("step")) for one in replies.rows(taking.get("steps"), "list of steps"))
    size = taking.get("bytes")
    came = f"{size // _KIB:,} KiB" if isinstance(size, int) else "?"
    what = f"{taking.get('file')} {came}" if taking.get("file") else "asking"
    return text.sanitise(f"{taking.get('id')} {taking.get('version')}: {passed or 'nothing'} passed; {what}", 200)
