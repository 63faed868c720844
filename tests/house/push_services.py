"""The services that notifications go to, on loopback: each refuses what its API is documented to refuse.

One HTTP server; the path says which service is asked. `taken` has what was accepted, `asked` everything that came.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TELEGRAM_TOKEN = "123456:AAF-telegram_token"
BARK_KEY = "barkDeviceKey22"
DISCORD_TOKEN = "discord-token_68"
SLACK_TOKEN = "slackTokenXXXX"
NTFY_TOKEN = "tk_ntfytoken0123"
GOTIFY_TOKEN = "AgotifyToken.1"
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"a key of the webhook, 32 bytes!!").decode()
SECRETS = {
    "TELEGRAM": TELEGRAM_TOKEN,
    "BARK": BARK_KEY,
    "DISCORD": DISCORD_TOKEN,
    "SLACK": SLACK_TOKEN,
    "NTFY": NTFY_TOKEN,
    "GOTIFY": GOTIFY_TOKEN,
    "HOOK": WEBHOOK_SECRET,
}
_TAG = re.compile(r"<(/?)([a-z-]+)>")
_ENTITY = re.compile(r"&(?!(?:lt|gt|amp|quot|#\d+|#x[0-9a-f]+);)")
_ID = re.compile(r"[-_A-Za-z0-9]{1,64}")

Answer = tuple[int, dict[str, str], bytes]


class Refused(Exception):
    """What a service answers instead of taking a message."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.answer: Answer = (status, {}, json.dumps(body).encode() if not isinstance(body, str) else body.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """One accepted message: the service, its text as a reader sees it, its id where the service takes one."""

    service: str
    title: str
    body: str
    id: str
    plain: dict[str, Any]


@dataclass
class PushServices:
    """`instead(service, path)` may answer in a service's place; an exception of it breaks the connection off."""

    port: int = 0
    taken: list[Taken] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    instead: Callable[[str, BaseHTTPRequestHandler], Answer | None] = lambda _service, _handler: None
    ending: threading.Event = field(default_factory=threading.Event)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of(self, service: str) -> list[Taken]:
        return [one for one in list(self.taken) if one.service == service]

    def channels(self) -> dict[str, dict[str, Any]]:
        """A channel of each kind that leads here."""
        return {
            "telegram": {"kind": "telegram", "token": "${secret:TELEGRAM}", "chat": "-100200", "server": self.origin},
            "bark": {"kind": "bark", "key": "${secret:BARK}", "server": self.origin},
            "discord": {"kind": "discord", "url": f"{self.origin}/api/webhooks/77/${{secret:DISCORD}}"},
            "slack": {"kind": "slack", "url": f"{self.origin}/services/T01/B02/${{secret:SLACK}}"},
            "ntfy": {"kind": "ntfy", "topic": "alerts", "token": "${secret:NTFY}", "server": self.origin},
            "gotify": {"kind": "gotify", "token": "${secret:GOTIFY}", "server": self.origin},
            "webhook": {"kind": "webhook", "url": f"{self.origin}/hook", "secret": "${secret:HOOK}"},
        }

    def answer(self, handler: BaseHTTPRequestHandler, raw: bytes) -> Answer:
        service = _service(handler.path)
        self.asked.append(service)
        instead = self.instead(service, handler)
        if instead is not None:
            return instead
        try:
            found, answer = _CHECKS[service](handler, raw)
        except Refused as refused:
            return refused.answer
        except KeyError:
            return 404, {}, b"not found"
        self.taken.append(found)
        return answer


def _service(path: str) -> str:
    if path.startswith("/bot"):
        return "telegram"
    if path.startswith("/api/webhooks/"):
        return "discord"
    if path.startswith("/services/"):
        return "slack"
    return {"/": "ntfy", "/message": "gotify", "/hook": "webhook"}.get(path, "bark" if path.count("/") == 1 else path)


def _object(handler: BaseHTTPRequestHandler, raw: bytes, refusal: Any = "invalid") -> dict[str, Any]:
    if not handler.headers.get("Content-Type", "").startswith("application/json"):
        raise Refused(415, refusal)
    try:
        found = json.loads(raw.decode("utf-8"))
    except ValueError:
        raise Refused(400, refusal) from None
    if not isinstance(found, dict):
        raise Refused(400, refusal)
    return found


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _telegram(handler: BaseHTTPRequestHandler, raw: bytes) -> tuple[Taken, Answer]:
    def refuse(status: int, why: str) -> Refused:
        return Refused(status, {"ok": False, "error_code": status, "description": why})

    if handler.path.replace("%3A", ":") != f"/bot{TELEGRAM_TOKEN}/sendMessage":
        raise refuse(401, "Unauthorized")
    plain = _object(handler, raw)
    known = {"chat_id", "text", "parse_mode", "link_preview_options", "disable_notification", "message_thread_id"}
    if plain.keys() - known or plain.get("chat_id") != "-100200":
        raise refuse(400, "Bad Request: chat not found")
    text, stack = plain["text"], []
    if plain.get("parse_mode") == "HTML":
        if "<" in _TAG.sub("", text) or ">" in _TAG.sub("", text) or _ENTITY.search(text):
            raise refuse(400, "Bad Request: can't parse entities")
        for closing, name in _TAG.findall(text):
            if name not in {"b", "i", "u", "s", "code", "pre"} or (closing and (not stack or stack.pop() != name)):
                raise refuse(400, f"Bad Request: can't parse entities: unsupported tag {name}")
            if not closing:
                stack.append(name)
        if stack:
            raise refuse(400, "Bad Request: can't parse entities: no end tag")
        text = _TAG.sub("", text).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    if not text.strip():
        raise refuse(400, "Bad Request: message text is empty")
    if _units(text) > 4_096:
        raise refuse(400, "Bad Request: message is too long")
    title, _, body = text.partition("\n")
    done = {"ok": True, "result": {"message_id": 1, "date": int(time.time()), "text": text}}
    return Taken(service="telegram", title=title, body=body, id="", plain=plain), (200, {}, json.dumps(done).encode())


def _bark(handler: BaseHTTPRequestHandler, raw: bytes) -> tuple[Taken, Answer]:
    plain = _object(handler, raw)
    if handler.path != f"/{BARK_KEY}":
        raise Refused(400, {"code": 400, "message": "failed to get device token", "timestamp": 1})
    if plain.get("level") not in {"active", "timeSensitive", "passive", "critical"}:
        raise Refused(400, {"code": 400, "message": "level", "timestamp": 1})
    if len(raw) > 3_500:
        raise Refused(500, {"code": 500, "message": "push failed: PayloadTooLarge", "timestamp": 1})
    done = json.dumps({"code": 200, "message": "success", "timestamp": 1}).encode()
    return Taken(service="bark", title=plain["title"], body=plain["body"], id=plain["id"], plain=plain), (200, {}, done)


def _discord(handler: BaseHTTPRequestHandler, raw: bytes) -> tuple[Taken, Answer]:
    if handler.path != f"/api/webhooks/77/{DISCORD_TOKEN}?wait=true":
        raise Refused(401, {"message": "Invalid Webhook Token", "code": 50027})
    plain = _object(handler, raw)
    (embed,) = plain["embeds"]
    sizes = _units(embed["title"]), _units(embed["description"])
    if not 0 < sizes[0] <= 256 or sizes[1] > 4_096 or sum(sizes) > 6_000 or not 0 <= embed["color"] <= 0xFFFFFF:
        raise Refused(
            400, {"message": "Invalid Form Body", "code": 50035, "errors": {"embeds": ["BASE_TYPE_MAX_LENGTH"]}}
        )
    if plain.get("allowed_mentions") != {"parse": []}:
        raise Refused(400, {"message": "this would ping people", "code": 50035})
    title, body = (re.sub(r"\\(.)", r"\1", embed[part], flags=re.DOTALL) for part in ("title", "description"))
    done = json.dumps({"id": "1", "channel_id": "2"}).encode()
    return Taken(service="discord", title=title, body=body, id="", plain=plain), (200, {}, done)


def _slack(handler: BaseHTTPRequestHandler, raw: bytes) -> tuple[Taken, Answer]:
    if handler.path != f"/services/T01/B02/{SLACK_TOKEN}":
        raise Refused(403, "invalid_token")
    plain = _object(handler, raw, "invalid_payload")
    text = plain.get("text", "")
    if not text.strip():
        raise Refused(400, "no_text")
    if len(text) > 40_000 or "<" in text or ">" in text or _ENTITY.search(text):
        raise Refused(400, "invalid_payload")
    seen = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    title, _, body = seen.partition("\n")
    return Taken(service="slack", title=title, body=body, id="", plain=plain), (200, {}, b"ok")


def _ntfy(handler: BaseHTTPRequestHandler, raw: bytes) -> tuple[Taken, Answer]:
    if handler.headers.get("Authorization") != f"Bearer {NTFY_TOKEN}":
        raise Refused(401, {"code": 40101, "http": 401, "error": "unauthorized"})
    plain = _object(handler, raw)
    if plain.get("priority") not in {1, 2, 3, 4, 5} or not _ID.fullmatch(plain.get("topic", "")):
        raise Refused(400, {"code": 40009, "http": 400, "error": "invalid"})
    if not _ID.fullmatch(plain["sequence_id"]) or len(plain["message"].encode()) > 4_096:
        raise Refused(413, {"code": 41301, "http": 413, "error": "too large"})
    done = json.dumps({"id": "xE73", "time": 1, "event": "message", "topic": plain["topic"]}).encode()
    taken = Taken(service="ntfy", title=plain["title"], body=plain["message"], id=plain["sequence_id"], plain=plain)
    return taken, (200, {}, done)


def _gotify(handler: BaseHTTPRequestHandler, raw: bytes) -> tuple[Taken, Answer]:
    if handler.headers.get("X-Gotify-Key") != GOTIFY_TOKEN:
        raise Refused(
            401,
            {"error": "Unauthorized", "errorCode": 401, "errorDescription": "you need to provide a valid access token"},
        )
    plain = _object(handler, raw)
    if not plain.get("message") or not 0 <= plain.get("priority", -1) <= 10:
        raise Refused(
            400, {"error": "Bad Request", "errorCode": 400, "errorDescription": "Field 'message' is required"}
        )
    done = json.dumps({"id": 25, "appid": 5, "message": plain["message"]}).encode()
    return Taken(service="gotify", title=plain["title"], body=plain["message"], id="", plain=plain), (200, {}, done)


def _webhook(handler: BaseHTTPRequestHandler, raw: bytes) -> tuple[Taken, Answer]:
    made, at = handler.headers.get("Webhook-Id", ""), handler.headers.get("Webhook-Timestamp", "")
    key = base64.b64decode(WEBHOOK_SECRET.removeprefix("whsec_"))
    wanted = base64.b64encode(hmac.new(key, f"{made}.{at}.".encode() + raw, hashlib.sha256).digest()).decode()
    given = [
        one.partition(",")[2] for one in handler.headers.get("Webhook-Signature", "").split() if one.startswith("v1,")
    ]
    if wanted not in given or not at.isdigit() or abs(int(at) - time.time()) > 300:
        raise Refused(401, "no matching signature found")
    plain = _object(handler, raw)
    data = plain["data"]
    taken = Taken(service="webhook", title=data["title"], body=data["body"], id=made, plain=plain)
    return taken, (204, {}, b"")


_CHECKS = {
    "telegram": _telegram,
    "bark": _bark,
    "discord": _discord,
    "slack": _slack,
    "ntfy": _ntfy,
    "gotify": _gotify,
    "webhook": _webhook,
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """A client that has gone is no error of the test."""


@contextlib.contextmanager
def serving() -> Iterator[PushServices]:
    """The services at a port of loopback."""
    services = PushServices()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, body = services.answer(self, raw)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            """Log nothing: what was asked is in `asked`."""

    server = _Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    services.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="push services")
    thread.start()
    try:
        yield services
    finally:
        services.ending.set()
        server.shutdown()
        thread.join()
        server.server_close()  # waits for the threads of its requests
