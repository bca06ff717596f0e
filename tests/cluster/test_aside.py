"""Standard error beside a live table."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from peer.cluster.aside import LONGEST, lines_above


def fail_loudly() -> None:
    os.write(2, b"peer 3 died [red]\nhalf ")
    subprocess.run(["sh", "-c", "echo of a child >&2"], check=True, timeout=20)
    os.write(2, b"\xff\n\n" + b"x" * (LONGEST + 10) + b"\nno end of line")
    raise ZeroDivisionError


def test_what_is_written_to_standard_error_comes_through_the_console_until_the_end() -> None:
    console, before = Console(file=io.StringIO(), width=60), os.fstat(2)
    with pytest.raises(ZeroDivisionError), lines_above(console):
        fail_loudly()
    assert os.path.samestat(os.fstat(2), before)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.startswith("peer 3 died [red]\nhalf of a child\n\ufffd\n\nx")
    assert said.count("x") == LONGEST + 10
    assert said.endswith("x\nno end of line\n")


def test_a_process_that_lives_on_does_not_hold_the_end() -> None:
    """As the server does that peers are forked from: it has the pipe as long as it lives."""
    with lines_above(Console(file=io.StringIO())):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.poll() is None
    child.communicate(b"\n", timeout=20)
    assert child.returncode == 0
