"""Logging: facts in the past tense, once, in the form the place asks for.

Under systemd (stderr is the stream that $JOURNAL_STREAM names): the journal's native protocol. Else JSON lines on
stdout, or text when stdout is a terminal. What the standard library's loggers say (asyncio, aiohttp, watchdog) goes
the same way. No entry carries a raw control, format or line-separator character, whatever its values held.

Use: `log = logs.get_logger()` at module level, then `log.info("plugin_armed", plugin_id=..., runner="wasm")`.
Nobody else imports structlog: imported plainly it pulls in rich, 100 ms and 10 MB for tracebacks nobody asked for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO, cast

from latticed.kit import journal, rendering

if "rich" in sys.modules:
    import structlog
else:
    # structlog.dev and structlog.tracebacks use rich when `import rich` works. None makes that import fail, as on a
    # machine without rich: the fallback they have for it. The entry is gone again before anyone else can meet it.
    sys.modules["rich"] = cast("Any", None)
    try:
        import structlog
    finally:
        del sys.modules["rich"]

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

FORMS: Final = ("auto", "journal", "json", "text")
_NUMBERS: Final = {name: getattr(logging, name.upper()) for name in rendering.PRIORITIES}


class Logger(Protocol):
    """What `get_logger` returns, as far as the house uses it."""

    def bind(self, **fields: Any) -> Logger: ...
    def debug(self, event: str, **fields: Any) -> Any: ...
    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...
    def error(self, event: str, **fields: Any) -> Any: ...
    def critical(self, event: str, **fields: Any) -> Any: ...


def get_logger(**bound: Any) -> Logger:
    """A logger with `bound` fields on each entry; it follows later calls of `configure`."""
    return cast("Logger", structlog.get_logger(**bound))


def configure(
    level: str = "info", *, form: str = "auto", stream: TextIO | None = None, environ: Mapping[str, str] | None = None
) -> None:
    """Log entries of `level` and above from now on; may be called again (a reload).

    `form` is one of FORMS; "auto" looks at $JOURNAL_STREAM and at `stream` (default stdout). KeyError for a level
    that does not exist.
    """
    number = _NUMBERS[level]
    reset()
    sink = _sink(form, stream or sys.stdout, os.environ if environ is None else environ)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _stamp, structlog.processors.format_exc_info, _hand_over],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: sink,
        cache_logger_on_first_use=False,  # module-level loggers must see the next configure
    )
    root = logging.getLogger()
    root.addHandler(_Library(sink))
    # Libraries narrate every request and every watch at INFO; what is worth hearing comes at WARNING.
    root.setLevel(number if number < logging.INFO else max(number, logging.WARNING))
    logging.captureWarnings(capture=True)


def reset() -> None:
    """Undo `configure`: entries go to structlog's default, libraries' to where they went before."""
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Library)]:
        root.removeHandler(handler)
        root.setLevel(logging.WARNING)
        handler.sink.close()


def plugin_line(plugin_id: str, line: str) -> None:
    """A line that a plugin wrote on stderr, already safe to show; in the journal its identifier names the plugin."""
    get_logger().info(rendering.PLUGIN_LINE, plugin_id=plugin_id, line=line)


class _Sink(Protocol):
    def put(self, entry: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class _Lines:
    """Text or JSON lines on a stream; a stream that is gone takes no daemon with it."""

    def __init__(self, stream: TextIO, *, form: str, colour: bool) -> None:
        self._stream, self._json, self._colour = stream, form == "json", colour

    def put(self, entry: Mapping[str, Any]) -> None:
        line = rendering.as_json(entry) if self._json else rendering.as_text(entry, colour=self._colour)
        with contextlib.suppress(OSError, ValueError):  # reader gone, stream closed
            data = line.encode(self._stream.encoding or "utf-8", "backslashreplace")
            self._stream.write(data.decode(self._stream.encoding or "utf-8") + "\n")
            self._stream.flush()

    def close(self) -> None:
        """The stream is the caller's."""


class _Journal:
    """Entries for journald; the next one that gets through says how many did not."""

    def __init__(self) -> None:
        self._sender = journal.Sender()

    def put(self, entry: Mapping[str, Any]) -> None:
        fields = rendering.as_journal(entry)
        if self._sender.lost:
            fields["LATTICED_LOST"] = str(self._sender.lost)
            fields["MESSAGE"] += f" ({self._sender.lost} entries before this one were lost)"
        self._sender.send(fields)

    def close(self) -> None:
        self._sender.close()


def _sink(form: str, stream: TextIO, environ: Mapping[str, str]) -> _Sink:
    if form == "journal" or (form == "auto" and journal.is_stream(2, environ)):
        return _Journal()
    terminal = stream.isatty()
    if form == "auto":
        form = "text" if terminal else "json"
    colour = terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    return _Lines(stream, form=form, colour=colour)


def _stamp(_: Any, level: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    entry["level"] = level if level in rendering.PRIORITIES else "error"  # `exception` is an error
    entry["wall_us"] = time.time_ns() // 1000
    return entry


def _hand_over(sink: _Sink, _: str, entry: MutableMapping[str, Any]) -> Any:
    sink.put(entry)
    raise structlog.DropEvent  # nothing is left for structlog to print


class _Library(logging.Handler):
    """Entries of the standard library's loggers, as the event `library_spoke`."""

    def __init__(self, sink: _Sink) -> None:
        super().__init__()
        self.sink = sink
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.sink.put(self._entry(record))
        except Exception:  # noqa: BLE001 - logging's contract: a bad record must not reach the caller
            self.handleError(record)

    def _entry(self, record: logging.LogRecord) -> dict[str, Any]:
        level = next(name for name, number in reversed(_NUMBERS.items()) if record.levelno >= number or name == "debug")
        entry: dict[str, Any] = {"event": "library_spoke", "level": level, "wall_us": int(record.created * 1e6)}
        entry |= {"logger": record.name, "message": record.getMessage()}
        if record.exc_info and record.exc_info[0] is not None:
            entry["exception"] = logging.Formatter().formatException(record.exc_info)
        return entry
