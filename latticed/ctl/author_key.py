"""The private key that an author's verb signs with: from a file or a descriptor, its passphrase never from argv."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from latticed.ctl.arguments import descriptor
from latticed.model.errors import Problem

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.ctl.arguments import Parser


def add_arguments(parser: Parser, *, required: bool = True) -> None:
    """The options of a verb that signs: --key or --key-fd, and --passphrase-fd."""
    source = parser.add_mutually_exclusive_group(required=required)
    source.add_argument("--key", metavar="FILE", type=str, help="private key, as latticectl key generate makes it")
    source.add_argument("--key-fd", metavar="N", type=descriptor, help="read the private key from this descriptor")
    add_passphrase(parser)


def add_passphrase(parser: Parser) -> None:
    """The option --passphrase-fd."""
    # No option that takes the passphrase itself: every user of the host sees the arguments of a process.
    parser.add_argument(
        "--passphrase-fd",
        metavar="N",
        type=descriptor,
        help="read the key's passphrase from this descriptor (else it is asked for on the terminal)",
    )


def given(args: argparse.Namespace) -> bool:
    """Whether a key was named."""
    return args.key is not None or args.key_fd is not None


def read(args: argparse.Namespace) -> Ed25519PrivateKey:
    """The key that the options name. Problem, also for a passphrase that is needed and cannot be had."""
    from latticed.trust import key_files

    if args.key_fd is not None:
        if args.key_fd == args.passphrase_fd:
            raise Problem("usage", "expected key and passphrase on two descriptors, found one for both")
        where = f"descriptor {args.key_fd}"
        return key_files.parse(_read_fd(args.key_fd, key_files.MAX_BYTES), where, passphrase(args, where))
    return key_files.read(Path(args.key), passphrase(args, args.key))


def passphrase(args: argparse.Namespace, name: str, *, twice: bool = False) -> Callable[[], bytes] | None:
    """How to get the passphrase of the key `name`; None without a terminal and --passphrase-fd.

    `twice`: asks for it again, as a new key's.
    """
    if args.passphrase_fd is not None:
        return lambda: _line(args.passphrase_fd)
    if sys.stdin.isatty():
        return lambda: _asked(name, twice=twice)
    return None


def _line(fd: int) -> bytes:
    """The passphrase on the descriptor: all of it without one final line end. Problem usage."""
    from latticed.trust import key_files

    found = _read_fd(fd, key_files.MAX_PASSPHRASE + 2).removesuffix(b"\n").removesuffix(b"\r")
    if not found or len(found) > key_files.MAX_PASSPHRASE:
        expected = f"expected a passphrase of 1 to {key_files.MAX_PASSPHRASE} bytes on descriptor {fd}"
        raise Problem("usage", f"{expected}, found {len(found)}")
    return found


def _asked(name: str, *, twice: bool) -> bytes:
    """The passphrase as typed on the terminal, without echo; Problem usage for none or two different ones."""
    typed = getpass.getpass(f"passphrase of {name}: ")
    if twice and getpass.getpass("once more: ") != typed:
        raise Problem("usage", "expected the same passphrase twice, found two")
    if not typed:
        raise Problem("usage", "expected a passphrase, found nothing")
    return typed.encode("utf-8", "surrogateescape")


def _read_fd(fd: int, limit: int) -> bytes:
    """All that can be read from a descriptor, at most `limit` bytes; Problem usage."""
    found = b""
    try:
        while chunk := os.read(fd, limit + 1 - len(found)):
            found += chunk
            if len(found) > limit:
                raise Problem("usage", f"expected at most {limit} bytes on descriptor {fd}, found more")
    except OSError as error:
        hint = "the shell opens it: 3< FILE, or 3<<< for a text"
        raise Problem("usage", f"cannot read descriptor {fd}: {error.strerror}", hint) from error
    return found
