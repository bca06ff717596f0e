"""`--log-format json`: every line is one valid JSON object, whatever is logged, by however many processes."""

from __future__ import annotations

import ast
import json
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from peer.cluster.forkserver import context
from peer.logs import LINE_BYTES, JsonLines, begin, event, line, plain

LINES = 200
KEYS = ["time", "level", "logger", "peer", "event", "message"]


def logged(record: logging.LogRecord, peer: int | None = 3) -> dict[str, Any]:
    text = JsonLines(peer).format(record)
    assert "\n" not in text
    assert len(text.encode()) < LINE_BYTES
    entry: dict[str, Any] = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    return entry


def record(message: str, *args: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("grapevine.test", logging.WARNING, "file.py", 1, message, args, None)
    made.__dict__.update(fields)
    return made


def test_a_line_says_when_how_bad_where_who_and_what() -> None:
    entry = logged(
        record("peer %d lost\n%s", 3, "peer 2", **event("link-lost", neighbor=2, reason="cut", peer=9, time=0))
    )
    assert list(entry) == [*KEYS, "neighbor", "reason"]
    assert (entry["level"], entry["logger"], entry["peer"]) == ("warning", "grapevine.test", 3)
    assert (entry["event"], entry["message"], entry["neighbor"]) == ("link-lost", "peer 3 lost\npeer 2", 2)
    assert entry["time"].endswith("+00:00")
    assert len(entry["time"]) == len("2026-11-21T18:25:19.123456+00:00")
    assert logged(record("nothing special"), None) | {"time": ""} == {
        **dict(zip(KEYS, ("", "warning", "grapevine.test", None, "log", "nothing special"), strict=True))
    }


def test_what_json_has_no_word_for() -> None:
    made = plain({"loss": math.nan, 1: [math.inf, -math.inf, 0.5], "path": Path("/x"), "pair": (True, None)})
    assert made == {"loss": None, "1": [None, None, 0.5], "path": "/x", "pair": [True, None]}
    assert logged(record("x", **event("e", path=Path("/x"), lone="\ud800")))["lone"] == "\ud800"


def test_a_traceback_is_in_its_line_and_the_line_is_short_enough() -> None:
    def fail(depth: int) -> None:
        if depth:
            fail(depth - 1)
        raise ArithmeticError("no flux " * 2000 if depth == 0 else "")

    for depth in (1, 200):
        try:
            fail(depth)
        except ArithmeticError:
            made = record("broken")
            made.exc_info = sys.exc_info()
        entry = logged(made)
        assert entry["message"] == "broken"
        assert entry["traceback"].startswith("Traceback (most recent call last)")
        assert "no flux" in entry["traceback"]


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "x" * 100_000, "other": "y" * 100_000},
        {"text": "\u00e4\n" * 50_000},
        {"numbers": list(range(10_000))},
        {f"field{i}": i for i in range(5_000)},
    ],
    ids=["texts", "escapes", "list", "fields"],
)
def test_no_line_is_longer_than_a_pipe_takes_at_once(fields: dict[str, Any]) -> None:
    text = line({"time": "now", "message": "that much", **fields})
    assert len(text) < LINE_BYTES
    assert json.loads(text)["message"] == "that much"


def _log_much(peer: int, end: Connection) -> None:
    os.dup2(end.fileno(), 2)
    begin("json", "info", peer)
    for number in range(LINES):
        extra = event("much", number=number)
        logging.getLogger("grapevine.test").info("%s", "long " * (number * 8), extra=extra)
    os._exit(0)


@pytest.mark.processes
def test_lines_of_several_processes_on_one_pipe_do_not_mix() -> None:
    server = context()
    reader, writer = server.Pipe(duplex=False)
    processes = [server.Process(target=_log_much, args=(peer, writer)) for peer in range(3)]
    for process in processes:
        process.start()
    writer.close()
    with os.fdopen(os.dup(reader.fileno())) as lines:
        said = [json.loads(text) for text in lines]
    for process in processes:
        process.join(10)
        assert process.exitcode == 0
    reader.close()
    for peer in range(3):
        assert [entry["number"] for entry in said if entry["peer"] == peer] == list(range(LINES))


def test_an_exception_that_nobody_caught_in_a_thread_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    begin("json", "error", 5)
    try:
        thread = threading.Thread(target=lambda: 1 / 0, name="worker")
        thread.start()
        thread.join()
    finally:
        logging.captureWarnings(False)
    (said,) = capsys.readouterr().err.splitlines()
    entry = json.loads(said)
    assert (entry["level"], entry["event"], entry["thread"], entry["peer"]) == (
        "critical",
        "thread-failed",
        "worker",
        5,
    )
    assert "ZeroDivisionError" in entry["traceback"]


def named_events(path: Path) -> Iterator[str]:
    """In calls of `event`, and of what a Voice says or shows."""
    if not re.search(r"peer\.logs import|peer\.cli\.voice import|^def event\(", path.read_text(), re.MULTILINE):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            place = {"event": 0, "self.show": 2}.get(called, 1 if called.endswith("voice.say") else None)
            if place is not None and len(node.args) > place and isinstance(node.args[place], ast.Constant):
                yield ast.literal_eval(node.args[place])


def test_every_event_is_documented() -> None:
    """And nothing else is."""
    root = Path(__file__).parents[1]
    events = {name for path in (root / "peer").rglob("*.py") for name in named_events(path)}
    table = (root / "docs" / "logs.md").read_text().partition("| event | facts |")[2]
    rows = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    assert events == {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)}
