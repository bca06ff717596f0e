"""What many tests use: the command line, typed into this process."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import hypothesis
import pytest

#: How long an example takes is the machine's affair; pytest's timeout is for what hangs.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left behind: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


Grapevine = Callable[..., Done]


@pytest.fixture
def grapevine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Grapevine]:
    """`grapevine WORDS` in this process, peers and all in theirs. A process of its own would first import torch twice, once for itself and
    once for the server that peers are forked from, which here is started once for all tests; tests/cluster/test_up.py starts both."""
    from peer.cli import main  # here, as half of the tests and the process that deals them out need none of it

    root, said = logging.getLogger(), logging.getLogger("grapevine.run")
    handlers, levels, hook = root.handlers[:], (root.level, said.level), threading.excepthook

    def typed(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["grapevine", *words])
        logging.getLogger().handlers.clear()
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        assert isinstance(code, int)
        return Done(code, *capsys.readouterr())

    yield typed
    root.handlers[:] = handlers
    for logger, level in zip((root, said), levels, strict=True):
        logger.setLevel(level)
    threading.excepthook = hook
    logging.captureWarnings(False)
