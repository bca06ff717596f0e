"""What Grapevine says while it runs: lines for people, or with `--log-format json` one JSON object a line, on standard error.

    {"time": "2026-11-21T18:25:19.123456+00:00", "level": "warning", "logger": "grapevine.conversation", "peer": 3,
     "event": "link-lost", "message": "peer 3 lost its link to peer 2: ...", "neighbor": 2, "reason": "..."}

`peer` is who speaks, null for the launcher; `event` is "log" where nobody gave a name; an exception is in `traceback`. Written here, on the
standard library's loggers, for two promises that every line be valid JSON needs and formatters of libraries do not make: NaN and
infinities are null, and no line is longer than LINE_BYTES, so that the lines of several processes on one pipe never mix.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from peer.config import Config

LINE_BYTES: Final = 4096
"""Longest line, its end counted: what a pipe takes as a whole (Linux, PIPE_BUF)."""

KEYS: Final = ("time", "level", "logger", "peer", "event", "message")
_LONGEST: Final = (2048, 1024, 512, 128)  # characters of a text in a line that is too long
_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
log = logging.getLogger("grapevine.run")


def begin_logs(config: Config) -> None:
    """Whatever is logged in this process goes to standard error from now on."""
    begin(config.log_format, config.log_level, config.peer)


def begin(format: str, level: str, peer: int | None = None) -> None:
    """The same. Once it is JSON it stays JSON; peer: who speaks from now on."""
    root = logging.getLogger()
    if format != "json":
        logging.basicConfig(level=level.upper(), format=_TEXT, stream=sys.stderr)
        return
    handler = _json_handler()
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        root.addHandler(handler)
    handler.setFormatter(JsonLines(peer))
    root.setLevel(level.upper())
    log.setLevel(logging.INFO)  # what takes the place of the words on standard output, however quiet the peers are
    logging.captureWarnings(True)
    threading.excepthook = _thread_failed
    os.environ.setdefault(
        "GRPC_VERBOSITY", "NONE"
    )  # gRPC's core writes lines of its own; what matters comes as errors of calls


def as_json() -> bool:
    """Whether this process says everything in JSON."""
    return _json_handler() is not None


def _json_handler() -> logging.Handler | None:
    return next((h for h in logging.getLogger().handlers if isinstance(h.formatter, JsonLines)), None)


def event(name: str, **fields: object) -> dict[str, object]:
    """`extra=` of a log call: the name of what happened, in a word or two with hyphens, and its facts."""
    return {"event": {"event": name, **fields}}


class JsonLines(logging.Formatter):
    """One JSON object a record. peer: who speaks."""

    def __init__(self, peer: int | None = None) -> None:
        super().__init__()
        self._peer = peer

    def format(self, record: logging.LogRecord) -> str:
        given = getattr(record, "event", None)
        fields = given if isinstance(given, Mapping) else {}
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "peer": self._peer,
            "event": "log",
            "message": record.getMessage(),
        }
        entry.update({name: value for name, value in fields.items() if name == "event" or name not in entry})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return line(entry)


def line(entry: Mapping[str, Any]) -> str:
    """JSON of at most LINE_BYTES with its line end. Where that is too short for all of it, texts lose their middle, and then all fields
    but KEYS are left out."""
    full = {name: plain(value) for name, value in entry.items()}
    text = _dumped(full)
    for longest in _LONGEST:
        if len(text) < LINE_BYTES:
            return text
        text = _dumped({name: _cut(value, longest) for name, value in full.items()})
    if len(text) < LINE_BYTES:
        return text
    return _dumped({name: _cut(full[name], _LONGEST[-1]) for name in KEYS if name in full})


def _cut(value: Any, longest: int) -> Any:
    text = value if isinstance(value, str) else _dumped(value)
    if len(text) <= longest:
        return value
    return f"{text[: longest // 2]} ... {text[-longest // 2 :]}"


def plain(value: Any) -> Any:
    """What JSON has: NaN and infinities become null, and what it has no word for its text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return str(value)


def _dumped(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_type is not SystemExit and failed.exc_value is not None:
        name = failed.thread.name if failed.thread is not None else "?"
        log.critical(
            "thread %s failed",
            name,
            exc_info=(failed.exc_type, failed.exc_value, failed.exc_traceback),
            extra=event("thread-failed", thread=name),
        )
