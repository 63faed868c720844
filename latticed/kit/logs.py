"""Logging: facts in the past tense, once, in the form the place asks for.

Under systemd (stderr is the stream that $JOURNAL_STREAM names): the journal's native protocol. Else JSON lines on
stdout, or text when stdout is a terminal. Entries of the standard library's loggers (asyncio, aiohttp, watchdog) go
the same way. No entry carries a raw control, format or line-separator character, whatever its values held.
Logging never waits: what cannot be written at once is dropped and counted (kit.nonblocking_writer).

Use: `log = logs.get_logger()` at module level, then `log.info("plugin_armed", plugin_id=..., runner="wasm")`.
No other module imports structlog: a plain import pulls in rich (100 ms, 10 MB) for tracebacks that are not used.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO, cast

from latticed.kit import journal_sender, nonblocking_writer, rendering

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
    from collections.abc import Callable, Mapping, MutableMapping

# The standard library's numbers of levels, lowest first.
_NUMBERS: Final = {name: getattr(logging, name.upper()) for name in rendering.PRIORITIES}


class Logger(Protocol):
    """What `get_logger` returns, as far as latticed uses it. `event` is a fact in the past tense, such as
    `plugin_armed`; `fields` are its details.
    """

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

    `form`: auto, journal, json or text; "auto" looks at $JOURNAL_STREAM in `environ` (default: the process's) and at
    `stream` (default stdout). KeyError for a level that does not exist. Takes over the root logger of the standard
    library and its warnings.
    """
    number = _NUMBERS[level]
    sink = _sink(form, stream or sys.stdout, os.environ if environ is None else environ)
    _detach()  # or each entry of a library would be logged once more with each call
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
    """Undo `configure`: entries go to structlog's default, libraries' to where they went before.

    What was logged is written first, as far as nonblocking_writer.CLOSE_S allows.
    """
    _detach()
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    if (outgoing := _Outgoing.current) is not None:
        _Outgoing.current = None
        outgoing.close()


def flush(timeout_s: float = nonblocking_writer.CLOSE_S) -> bool:
    """Whether everything that was logged is written within `timeout_s` seconds; blocks meanwhile."""
    outgoing = _Outgoing.current
    return outgoing is None or outgoing.writer.flush(timeout_s)


atexit.register(flush)  # the writing thread is a daemon thread: the process ends without it


def dropped() -> int:
    """How many entries could not be written, since the first `configure`."""
    outgoing = _Outgoing.current
    return _Outgoing.dropped_before + (outgoing.writer.dropped if outgoing is not None else 0)


def take_unraised() -> None:
    """From now on log exceptions that nothing can catch (of threads, of finalisers); Python would print them on stderr,
    which may be a pipe that is never read.
    """

    def unraisable(found: sys.UnraisableHookArgs) -> None:
        get_logger().error("exception_ignored", error=repr(found.exc_value), where=repr(found.object))

    def of_thread(found: threading.ExceptHookArgs) -> None:
        get_logger().error("thread_failed", error=repr(found.exc_value), task=found.thread and found.thread.name)

    sys.unraisablehook = unraisable
    threading.excepthook = of_thread
    # A handler that fails would print on stderr, too.
    logging.raiseExceptions = False


def _detach() -> None:
    """Take our handlers from the root logger."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Library)]:
        root.removeHandler(handler)
        root.setLevel(logging.WARNING)


def plugin_line(plugin_id: str, line: str) -> None:
    """A line that a plugin wrote on stderr, already safe to show; in the journal its identifier names the plugin."""
    get_logger().info(rendering.PLUGIN_LINE, plugin_id=plugin_id, line=line)


class _Sink(Protocol):
    def put(self, entry: Mapping[str, Any]) -> None: ...


class _Outgoing:
    """The writer that is open, kept over reconfigurations to the same `target`, so that none has to wait for it.

    `encode` gives an entry as bytes, in the form of the newest configuration.
    """

    current: _Outgoing | None = None
    dropped_before = 0

    def __init__(self, target: object, write: Callable[[bytes], bool], close: Callable[[], None]) -> None:
        self.target = target
        self.encode: Callable[[Mapping[str, Any]], bytes] = lambda _: b""  # `_sink` sets it at once
        self.writer = nonblocking_writer.NonBlockingWriter(write, lambda count: self.encode(_missing(count)))
        self._close = close

    def close(self) -> None:
        """Write what was put (for `nonblocking_writer.CLOSE_S` at most), count what was dropped, close the target."""
        self.writer.close()
        _Outgoing.dropped_before += self.writer.dropped
        self._close()


class _Queued:
    """Encodes an entry and queues the bytes for the thread that writes them."""

    def __init__(self, outgoing: _Outgoing) -> None:
        self._outgoing = outgoing

    def put(self, entry: Mapping[str, Any]) -> None:
        of_plugins = entry["event"] in rendering.OF_PLUGINS
        self._outgoing.writer.put(self._outgoing.encode(entry), of_others=of_plugins)


class _Memory:
    """Text or JSON lines on a stream without a descriptor: writing to memory does not block."""

    def __init__(self, stream: TextIO, encode: Callable[[Mapping[str, Any]], bytes]) -> None:
        self._stream, self._encode = stream, encode

    def put(self, entry: Mapping[str, Any]) -> None:
        with contextlib.suppress(ValueError):  # closed
            self._stream.write(self._encode(entry).decode(self._stream.encoding or "utf-8"))


def _missing(count: int) -> dict[str, Any]:
    """The warning `log_dropped` about `count` entries that could not be written."""
    return {"event": "log_dropped", "level": "warning", "wall_us": time.time_ns() // 1000, "entries": count}


def _sink(form: str, stream: TextIO, environ: Mapping[str, str]) -> _Sink:
    """Where entries go: the journal, or `stream` in the given form. A writer that is open already is used again."""
    if form == "journal" or (form == "auto" and journal_sender.is_stream(2, environ)):
        outgoing = _opened("journal", _to_journald)
        outgoing.encode = lambda entry: journal_sender.encode(rendering.as_journal(entry))
        return _Queued(outgoing)
    terminal = stream.isatty()
    if form == "auto":
        form = "text" if terminal else "json"
    colour = terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    encode = functools.partial(_line, form=form, colour=colour, encoding=stream.encoding or "utf-8")
    try:
        stream.fileno()
    except (OSError, ValueError):  # io.StringIO has none; a closed stream raises ValueError
        return _Memory(stream, encode)
    # Not closed: the stream is the caller's.
    outgoing = _opened(stream, lambda: (lambda data: _to_stream(stream, data), lambda: None))
    outgoing.encode = encode
    return _Queued(outgoing)


def _line(entry: Mapping[str, Any], *, form: str, colour: bool, encoding: str) -> bytes:
    """The entry as bytes, with a newline; characters that `encoding` does not have are escaped."""
    line = rendering.as_json(entry) if form == "json" else rendering.as_text(entry, colour=colour)
    return (line + "\n").encode(encoding, "backslashreplace")


def _opened(target: object, ways: Callable[[], tuple[Callable[[bytes], bool], Callable[[], None]]]) -> _Outgoing:
    """The writer to `target`: the one that is open, or a new one in its place.

    `ways()` returns two functions for a new one: `write` for `NonBlockingWriter`, and one that closes the target.
    """
    current = _Outgoing.current
    if current is not None and current.target == target:
        return current
    if current is not None:
        current.close()
    _Outgoing.current = fresh = _Outgoing(target, *ways())
    return fresh


def _to_journald() -> tuple[Callable[[bytes], bool], Callable[[], None]]:
    """How to write to the journal, and how to close it: two functions."""
    sender = journal_sender.JournalSender()
    return sender.send, sender.close


def _to_stream(stream: TextIO, data: bytes) -> bool:
    """Write to the stream's descriptor; False when that failed."""
    try:
        return nonblocking_writer.write_fd(stream.fileno(), data)
    except ValueError:  # closed
        return False


def _stamp(_: Any, level: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor of structlog: add level and time."""
    entry["level"] = level if level in rendering.PRIORITIES else "error"  # `exception` is an error
    entry["wall_us"] = time.time_ns() // 1000
    return entry


def _hand_over(sink: _Sink, _: str, entry: MutableMapping[str, Any]) -> Any:
    """The last processor of structlog: put the entry into the sink."""
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
        """An entry of a library as one of ours: `library_spoke` with its logger, message and traceback."""
        # The highest level that is not above the record's; libraries may use numbers in between.
        level = next(name for name, number in reversed(_NUMBERS.items()) if record.levelno >= number or name == "debug")
        entry: dict[str, Any] = {"event": "library_spoke", "level": level, "wall_us": int(record.created * 1e6)}
        entry |= {"logger": record.name, "message": record.getMessage()}
        if record.exc_info and record.exc_info[0] is not None:
            entry["exception"] = logging.Formatter().formatException(record.exc_info)
        return entry
