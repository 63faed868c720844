"""What `latticectl run` and `dev` give to a bundle that is tried: its configuration, and secrets of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.client.control import ApiRefusal
from latticed.ctl import config, secret
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

    from latticed.ctl.arguments import Parser
    from latticed.ctl.render import Screen
    from latticed.ctl.trial import Trial

_ENVIRONMENT: Final = "env"
_FORMS: Final = "--secret NAME=@FILE, or NAME=env for the variable NAME"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialInput:
    """`source` is where the configuration is from, as it was named; `secrets` are values by name."""

    source: str
    config: dict[str, Any] | None
    secrets: dict[str, bytes]


def arguments(parser: Parser) -> None:
    """Add the flags."""
    parser.add_argument("-f", "--file", metavar="FILE", type=str, help="configure it first (TOML or JSON, - for stdin)")
    parser.add_argument(
        "--secret",
        metavar="NAME=@FILE|env",
        action="append",
        default=[],
        help="let it use this secret, read from FILE or the environment's NAME (repeatable)",
    )


def read(args: Namespace, environ: Mapping[str, str]) -> TrialInput:
    """What the flags name, read before anything is started; Problems usage, too_large."""
    read_from = [args.file, getattr(args, "payload", None), *(text.partition("=@")[2] for text in args.secret)]
    if read_from.count("-") > 1:
        raise Problem("usage", "expected one thing to be read from stdin, found several", "name a file for the others")
    secrets: dict[str, bytes] = {}
    for text in args.secret:
        name, _, where = text.partition("=")
        if name in secrets:
            raise Problem("usage", f"--secret {name[:80]}: expected it once, found it twice")
        secrets[name] = _value(name, where, environ)
    document = config.document(args.file) if args.file is not None else None
    return TrialInput(source=args.file or "", config=document, secrets=secrets)


def _value(name: str, where: str, environ: Mapping[str, str]) -> bytes:
    """The value of one secret; Problem usage, which never shows it."""
    if where.startswith("@"):
        value = secret.trimmed(config.read(where[1:]))
    elif where == _ENVIRONMENT:
        value = environ.get(name, "").encode("utf-8", "surrogateescape")
    else:  # others see the arguments of a process
        raise Problem("usage", f"--secret {name[:80]}: expected =@FILE or =env, found another form", _FORMS)
    if not value:
        raise Problem("usage", f"--secret {name[:80]}: expected a value, found nothing", _FORMS)
    return value


def give(screen: Screen, own: Trial, given: TrialInput) -> None:
    """Configure the installed plugin and bind its secrets; Problem config_invalid, once each fault is printed."""
    client = own.client()
    for name, value in given.secrets.items():
        client.put_bytes("secrets", name, body=value)
        client.put("secrets", name, "plugins", own.plugin_id, body={})
    if given.config is None:
        return
    body = {"config": given.config, "dry_run": False}
    try:
        client.put("plugins", "by-id", own.plugin_id, "config", body=body)
    except ApiRefusal as refusal:
        if refusal.code != "config_invalid":
            raise
        problem = config.misfit(screen, refusal, given.source, own.plugin_id)
        # Nobody can ask the daemon of a trial for the schema.
        raise Problem(problem.code, problem.reason, "`config` in its manifest says what it may hold") from refusal
