"""`grapevine peer` beside its daemon: who watches the target, and what becomes of its errors."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from torch import nn

from peer.cli import standalone
from peer.cli.voice import Voice
from peer.config import validated
from peer.exit_codes import ExitCode, Fatal
from tests.daemon.tasks import Linear


class Failing(Linear):
    """Remembers which threads built its model."""

    built_in: ClassVar[set[threading.Thread]] = set()

    def model(self) -> nn.Module:
        self.built_in.add(threading.current_thread())
        return super().model()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("the flux capacitor is empty")


class Host:
    """Stands for a peer in training that ends only when it is asked to."""

    state = "training"
    parts = SimpleNamespace(task=Failing())

    def __init__(self) -> None:
        self.stopped = asyncio.Event()

    def seconds(self) -> float:
        return 1.0

    async def snapshot(self) -> tuple[int, torch.Tensor]:
        return 1, torch.zeros(7)

    def request_stop(self, reason: str) -> None:
        self.stopped.set()


async def test_an_error_of_the_target_watcher_ends_the_peer_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(config: object, peer: int, book: object, *, started: Any) -> str:
        host = Host()
        started(host)
        await host.stopped.wait()
        return "summary"

    monkeypatch.setattr(standalone, "serve", serve)
    monkeypatch.setattr(standalone, "stop_on_signals", lambda host: None)
    config = validated({"target_loss": 0.1, "eval_every": 0.001})
    async with asyncio.timeout(20):
        with pytest.raises(Fatal, match="the flux capacitor is empty") as fatal:
            await standalone._run(config, 0, Voice(Console(quiet=True)))
    assert fatal.value.code is ExitCode.TASK
    assert Failing.built_in
    assert threading.current_thread() not in Failing.built_in, "the loop stood still while the evaluator was built"
