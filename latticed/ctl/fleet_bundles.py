"""Bundles that are handed over to the controller: a signed bundle's directory, or a file that was made of one."""

from __future__ import annotations

import hashlib
import io
import os
from typing import TYPE_CHECKING, Final

from latticed.client.control import LONG_S
from latticed.ctl import fleet_controller, replies
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.arguments import Parser
    from latticed.ctl.session import CtlSession

_FILES: Final = ("manifest.json", "artifact")
MOST_BYTES: Final = 66 << 20
"""Of a bundle's file, as hosts take it."""


def add_arguments(parser: Parser) -> None:
    """The option of verbs that hand over bundles."""
    parser.add_argument(
        "--bundle",
        metavar="BUNDLE",
        type=str,
        action="append",
        default=[],
        help="hand over this bundle first: its directory, or a tar of manifest.json and artifact (repeatable)",
    )


def send(session: CtlSession) -> None:
    """Hand over each bundle of --bundle that the controller does not have; what each is worth is for the nodes."""
    if not session.args.bundle:
        return
    asked = fleet_controller.client(session, read_s=LONG_S)
    page = replies.mapping(asked.get("fleet", "bundles"), "bundles")
    here = {str(one.get("sha256")) for one in replies.rows(page.get("bundles"), "list of bundles") if one.get("here")}
    for path in session.args.bundle:
        data = packed(path)
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in here:
            asked.put_bytes("fleet", "bundles", sha256, body=data)
        session.screen.note(f"{path}: {'here already' if sha256 in here else 'handed over'}, SHA-256 {sha256}")


def packed(path: str) -> bytes:
    """The file of a bundle: the same bytes each time for the same directory. Problems unreadable, too_large."""
    try:
        if not os.path.isdir(path):
            with open(path, "rb") as file:
                data = file.read(MOST_BYTES + 1)
        else:
            data = _of_directory(path)
    except OSError as error:
        detail = f"cannot read {error.filename or path}: {error.strerror or error}"
        raise Problem("unreadable", detail, "expected a bundle's directory, or a tar of it") from error
    if len(data) > MOST_BYTES:
        raise Problem("too_large", f"{path}: expected at most {MOST_BYTES} bytes, found more")
    return data


def _of_directory(path: str) -> bytes:
    from latticed.kit import tar

    out = io.BytesIO()
    for name in _FILES:
        with open(os.path.join(path, name), "rb") as file:
            data = file.read(MOST_BYTES + 1)
        # Without a time: so that the same bundle is the same file.
        out.write(tar.header(name, len(data), mode=0o644, mtime_s=0) + data + bytes(tar.padding(len(data))))
    return out.getvalue() + tar.END
