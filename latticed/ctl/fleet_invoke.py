"""latticectl fleet invoke: one action of a plugin on one node, signed by the operator; the node's answer is checked."""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.client.control import LONG_S
from latticed.ctl import fleet_controller, fleet_signing, invoke, replies
from latticed.ctl.arguments import Parser, count, examples
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession
    from latticed.fleet.fleet_directory import FleetDirectory

EXAMPLES: Final = examples(
    "latticectl fleet invoke web-1 acme.demo describe --key operator.key",
    """latticectl fleet invoke web-1 acme.demo greet '{"name": "world"}' --key operator.key""",
)
_VALID_S: Final = 300
_MOST_S: Final = 3_600
"""A node takes nothing that is valid for longer."""


def arguments(parser: Parser) -> None:
    fleet_controller.add_arguments(parser)
    parser.add_argument("node", metavar="NODE", help="a node's name, as latticectl fleet nodes shows it")
    parser.add_argument("id", metavar="ID", help="the plugin's id")
    parser.add_argument("do", metavar="ACTION", help="the action that it is to carry out")
    parser.add_argument("payload", metavar="JSON", nargs="?", help="the payload, an object, or - to read it from stdin")
    parser.add_argument(
        "--valid",
        metavar="S",
        type=count,
        default=_VALID_S,
        help=f"seconds from now until which the node may begin (default {_VALID_S}, at most {_MOST_S})",
    )
    parser.add_argument("--node-key", metavar="KEY", default="", help="the node's public key, if you know it otherwise")
    fleet_signing.add_arguments(parser)


class Addressee(NamedTuple):
    """Whom it is for, by the word of an operator and not of the controller."""

    fleet: str
    node: str
    key: str


def run(session: CtlSession) -> int:
    """Sign, have the controller ask the node, check the answer's signature, and print it."""
    args = session.args
    if not 1 <= args.valid <= _MOST_S:
        raise Problem("usage", f"--valid: expected 1 to {_MOST_S} seconds, found {args.valid}")
    payload = invoke.payload(args.payload)
    if payload is not None and not isinstance(payload, dict):
        raise Problem(
            "usage", "the payload: expected an object, found another value", """put it into one: '{"value": …}'"""
        )
    asked = fleet_controller.client(session, read_s=LONG_S)
    fleet = fleet_signing.directory(session)
    wanted = _addressee(session, replies.mapping(asked.get("fleet", "nodes", args.node), "node"), fleet)
    key = fleet_signing.operator_key(session, fleet)
    nonce = secrets.token_hex(16)
    envelope = _signed(wanted, key, nonce, session, payload or {})
    plain = replies.mapping(asked.post("fleet", "invoke", body=json.loads(envelope)), "answer")
    return _show(session, _checked(wanted, nonce, str(plain.get("envelope") or "")))


def _addressee(session: CtlSession, view: dict[str, Any], fleet: FleetDirectory) -> Addressee:
    """The node's key: by --node-key, or by the request with which it joined by an operator's invitation."""
    from latticed.fleet import enrolment
    from latticed.fleet.judging import Refusal
    from latticed.trust import policy

    node, facts = session.args.node, fleet.facts
    if session.args.node_key:
        try:
            return Addressee(facts.fleet, node, policy.public_key(session.args.node_key, "--node-key"))
        except Problem as problem:
            raise Problem("usage", problem.reason, "a public key is 44 characters of base64") from problem
    found = enrolment.read_request(str(view.get("enrolment") or "").encode())
    if isinstance(found, Refusal):
        raise _unproven(node, found.reason)
    if found.token.key not in facts.operators:
        raise _unproven(node, f"an invitation by {found.token.key}, who is no operator of this fleet")
    if (found.document.fleet, found.document.node) != (facts.fleet, node):
        raise _unproven(node, f"that of {found.document.node} in the fleet {found.document.fleet}")
    return Addressee(facts.fleet, node, found.request.node_key)


def _unproven(node: str, found: str) -> Problem:
    detail = f"expected the controller to prove which key {node} has, found: {found}"
    return Problem("node_unproven", detail, "name the key yourself: --node-key KEY")


def _signed(wanted: Addressee, key: Any, nonce: str, session: CtlSession, payload: dict[str, Any]) -> bytes:
    from latticed.fleet import documents

    args = session.args
    document = documents.Invocation(
        fleet=wanted.fleet,
        node=wanted.node,
        node_key=wanted.key,
        nonce=nonce,
        expires=int(time.time()) + args.valid,
        plugin=args.id,
        action=args.do,
        payload=payload,
    )
    try:
        return documents.sign(document, key)
    except documents.Malformed as error:
        raise Problem("usage", f"expected what a node reads, found: {error}") from error


def _checked(wanted: Addressee, nonce: str, envelope: str) -> dict[str, Any]:
    """What the node answered to this very invocation; Problem answer_forged for what is not the node's."""
    from latticed.fleet import documents

    try:
        signed = documents.read(envelope.encode(), documents.InvocationResult)
    except documents.Malformed as error:
        raise _forged(wanted, str(error)) from error
    found = signed.document
    if (signed.key, found.fleet, found.node, found.nonce) != (wanted.key, wanted.fleet, wanted.node, nonce):
        raise _forged(wanted, f"one of {found.node} under {signed.key}, to {found.nonce}")
    return {
        "node": found.node,
        "nonce": found.nonce,
        "code": found.code,
        "reason": found.reason,
        "answer": found.answer,
    }


def _forged(wanted: Addressee, found: str) -> Problem:
    return Problem(
        "answer_forged",
        f"expected an answer signed by {wanted.node}, found {found}",
        "whether it was carried out is not known: latticectl fleet events --node NAME, and look at the controller",
    )


def _show(session: CtlSession, found: dict[str, Any]) -> int:
    args = session.args
    if found["code"]:
        if session.screen.json_wanted:
            session.screen.json(found)
        raise Problem(found["code"], f"{args.node}: {found['reason']}", f"latticectl fleet node {args.node}")
    hint = f"on {args.node}: latticectl logs {args.id} shows what it says"
    return invoke.show(session, found["answer"], args.id, args.do, hint=hint)
