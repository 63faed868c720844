"""latticectl key: make and show signing keys, offline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.ctl import author_key
from latticed.ctl.arguments import Parser, descriptor, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl key generate acme.key",
    "latticectl key generate --passphrase acme.key              # asked for twice, on the terminal",
    "latticectl key generate --passphrase-fd 3 acme.key index.key 3< passphrase.txt",
    "latticectl key show acme.key                # the public key, in base64",
    'latticectl trust add acme "$(latticectl key show acme.key)"',
)


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    summary = "make a private key in each new file (mode 0600) and print its public half"
    generate = actions.add_parser("generate", help=summary, description=summary)
    generate.add_argument(
        "files", metavar="FILE", type=str, nargs="+", help="where the private key is written; the public one is printed"
    )
    generate.add_argument("--passphrase", action="store_true", help="ask for a passphrase to encrypt them with")
    author_key.add_passphrase(generate)
    summary = "print the public half of a private key, as trust.json wants it"
    show = actions.add_parser("show", help=summary, description=summary)
    show.add_argument("key", metavar="FILE", type=str, nargs="?", help="file with the private key")
    show.add_argument("--key-fd", metavar="N", type=descriptor, help="read the private key from this descriptor")
    author_key.add_passphrase(show)


def run(session: CtlSession) -> int:
    """Make keys, or show the public half of one."""
    args = session.args
    found = generate(session, args.files) if args.action == "generate" else [show(session)]
    if session.screen.json_wanted:
        session.screen.json(found if len(found) > 1 else found[0])
    else:
        for one in found:
            session.screen.line(one["public_key"])
    return ExitCode.OK


def generate(session: CtlSession, files: list[str]) -> list[dict[str, str]]:
    """Make a key in each file; none when one of the files exists. `--passphrase` and `--passphrase-fd` are observed."""
    from latticed.trust import key_files

    args = session.args
    for one in files:
        if os.path.lexists(one):
            raise key_files.exists(Path(one))
    ask = author_key.passphrase(args, "the new keys" if len(files) > 1 else files[0], twice=True)
    if args.passphrase and ask is None:
        raise Problem("usage", "expected a terminal to ask for the passphrase on, found none", "use --passphrase-fd N")
    wanted = args.passphrase or args.passphrase_fd is not None
    passphrase = ask() if wanted and ask is not None else b""
    made = []
    for one in files:
        key = key_files.generate()
        key_files.create(Path(one), key, passphrase)
        session.screen.note(f"wrote the private key to {one}: keep it secret; below is its public half")
        made.append({"path": one, "public_key": key_files.public_text(key)})
    return made


def show(session: CtlSession) -> dict[str, str]:
    """The public half of the key that was named."""
    from latticed.trust import key_files

    args = session.args
    if (args.key is None) == (args.key_fd is None):
        raise Problem("usage", "expected FILE or --key-fd N, found " + ("neither" if args.key is None else "both"))
    shown = args.key if args.key is not None else f"descriptor {args.key_fd}"
    return {"path": shown, "public_key": key_files.public_text(author_key.read(args))}
