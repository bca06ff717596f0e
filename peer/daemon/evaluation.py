"""A peer's own model, judged on the test set now and then, for its metrics.

It happens in a thread of its own, on a copy of the parameters and of the model, batch by batch, so that the event loop keeps its
appointments and the end of training waits for a batch at most. It comes again after the asked interval, or after ten times the
processor time that it took if that is longer: never more than a tenth of a core. If the task's own code fails here, that is logged, there
are no evaluations any more, and training goes on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from torch import Tensor

from peer.metrics import EVAL_ACCURACY, EVAL_LOSS, EVAL_ROUND, EVALUATION, Sheet
from peer.training.evaluate import Evaluator, Judgement
from peer.training.task import Task

log = logging.getLogger("grapevine.evaluation")

SHARE_OF_A_CORE: Final = 0.1
SNAPSHOT_WITHIN: Final = 30.0
STOPS_WITHIN: Final = 2.0
"""Seconds after which a thread in the middle of a batch is left behind."""


class Evaluation:
    """every: seconds between two. snapshot: (rounds finished, a copy [d] of the parameters), on the event loop."""

    def __init__(
        self, task: Task, seed: int, every: float, snapshot: Callable[[], Coroutine[Any, Any, tuple[int, Tensor]]]
    ) -> None:
        self._task = task
        self._seed = seed
        self._every = every
        self._snapshot = snapshot
        self._loop = asyncio.get_running_loop()
        self._evaluator: Evaluator | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="evaluation", daemon=True)
        self._seconds = (0.0, 0)  # of all evaluations, and their number
        self._newest: tuple[int, Judgement] | None = None

    async def prepare(self) -> None:
        """To be called before training: to make a model seeds torch's global generator, which the trainer may draw from."""
        try:
            self._evaluator = await asyncio.to_thread(Evaluator, self._task, self._seed)
        except Exception as error:
            self._give_up(error)

    def start(self) -> None:
        if self._evaluator is not None:
            self._thread.start()

    async def stop(self) -> None:
        """May be called again."""
        self._over.set()
        if self._thread.is_alive():
            await self._loop.run_in_executor(None, self._thread.join, STOPS_WITHIN)

    def fill(self, sheet: Sheet) -> None:
        """A source of the peer's metrics."""
        seconds, number = self._seconds
        sheet.summarize(EVALUATION, seconds, number)
        if self._newest is None:
            return
        rounds, judged = self._newest
        sheet.put(EVAL_ROUND, rounds)
        sheet.put(EVAL_LOSS, judged.loss)
        if judged.accuracy is not None:
            sheet.put(EVAL_ACCURACY, judged.accuracy)

    # on the thread

    def _run(self) -> None:
        assert self._evaluator is not None, "prepare has come before start"
        try:
            pause = self._every
            while not self._over.wait(pause):
                pause = self._evaluate(self._evaluator)
        except Exception as error:
            if not self._over.is_set():
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.error("the model is not evaluated any more: %s: %s", type(error).__name__, error)

    def _evaluate(self, evaluator: Evaluator) -> float:
        """Judge the model as it is now; returns the seconds until the next time."""
        asked = asyncio.run_coroutine_threadsafe(self._snapshot(), self._loop)
        try:
            rounds, model = asked.result(SNAPSHOT_WITHIN)
        except TimeoutError:
            asked.cancel()  # the peer is too busy, or waits: later, then
            return self._every
        began, busy = time.monotonic(), time.thread_time()
        judged = evaluator.judge(model, stop=self._over.is_set)
        took = time.monotonic() - began
        if judged is not None:
            self._newest = rounds, judged
            self._seconds = self._seconds[0] + took, self._seconds[1] + 1
        return max(self._every, (time.thread_time() - busy) / SHARE_OF_A_CORE) - took
