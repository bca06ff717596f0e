"""How a peer or a cluster ends, as the exit code of the process. Documented in docs/exit-codes.md."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    OK = 0  # target, limit, SIGINT or SIGTERM
    BUG = 1  # an error of ours: a traceback in the log
    CONFIG = 2  # configuration, topology, task or command line
    PORT = 3  # an address can't be listened on
    ABSENT = 4  # a peer did not appear in time
    LOST = 5  # a peer without which the algorithm can't go on was lost
    REFUSED = 6  # peers disagree on run, model or settings
    NONFINITE = 7  # too many chunks in a row with NaN or infinite gradients
    TASK = 8  # the user's own code failed
    INTERRUPTED = 130  # a second SIGINT


class Fatal(Exception):
    """Ends a peer with a sentence and an exit code."""

    def __init__(self, code: ExitCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence

    def __reduce__(self) -> tuple[type[Fatal], tuple[ExitCode, str]]:
        """It may come out of a worker process."""
        return Fatal, (self.code, self.sentence)
