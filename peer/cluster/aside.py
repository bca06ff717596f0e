"""What is written to standard error while a live table is on the screen: above the table, where it does not break it.

Peers write to the terminal themselves, so it is the file number 2 that is led here, before they are started. Imports nothing heavy.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.text import Text

LONGEST: Final = 1 << 16
"""Bytes of a line that has no end."""

DRAINED_SECONDS: Final = 2.0
_END: Final = b"\0end\n"  # from this process to its own thread: processes may live on that hold the pipe open


def in_the_way(console: Console) -> bool:
    """Whether both outputs are the terminal."""
    return console.is_interactive and sys.stderr.isatty()


@contextmanager
def lines_above(console: Console) -> Iterator[None]:
    """Within it whatever this process and those it starts write to standard error is printed by `console`, line by line."""
    reader, writer = os.pipe()
    terminal = os.dup(2)
    os.dup2(writer, 2)
    thread = threading.Thread(target=_print_lines, args=(reader, console), name="lines above", daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)
        os.write(writer, _END)
        os.close(writer)
        thread.join(DRAINED_SECONDS)


def _print_lines(reader: int, console: Console) -> None:
    unfinished = b""
    while piece := os.read(reader, LONGEST):
        *whole, unfinished = (unfinished + piece).split(b"\n")
        if len(unfinished) >= LONGEST:
            whole, unfinished = [*whole, unfinished], b""
        for line in whole:
            said, end, _ = line.partition(_END[:-1])
            if said or not end:
                console.print(Text(said.decode(errors="replace")))
            if end:
                os.close(reader)
                return
