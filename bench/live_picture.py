"""The picture of the live view in the README: one frame of a real run, as SVG.

python bench/live_picture.py [--at 15] [--out docs/live-view.svg]
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from peer.accounts.observation import Observation
from peer.cluster.forkserver import start_early
from peer.cluster.live import Frame, headline
from peer.cluster.table import Row, hear
from peer.cluster.up import up
from peer.config import Config, validated
from peer.daemon.process import run_loop
from peer.wire.gossip_pb2 import State, StatusReply


class LastFrame:
    """A view that keeps what the live view would show last."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._rows: dict[int, Row] = {}
        self.console = Console(record=True, width=116, file=io.StringIO(), force_terminal=True, force_interactive=False)

    def __enter__(self) -> LastFrame:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def say(self, sentence: str) -> None:
        return None

    def ready(self, addresses: Sequence[str]) -> None:
        return None

    def note(self, sentence: str) -> None:
        return None

    def show(self, curve: Sequence[Observation], statuses: Sequence[StatusReply | None]) -> None:
        hear(self._rows, dict(enumerate(statuses)))
        training = [status is not None and status.state == State.STATE_TRAINING for status in statuses]
        if training and all(training):
            self.console.export_text(clear=True)
            self.console.print(Frame(headline(self._config, curve), self._rows.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at", type=float, default=15.0, help="seconds of training")
    parser.add_argument("--out", type=Path, default=Path("docs/live-view.svg"))
    arguments = parser.parse_args()
    start_early()
    options = {"straggler": ("0=4x",), "chunk_seconds": 0.01, "target_loss": 0.1, "max_seconds": arguments.at}
    config = validated({**options, "metrics_port": -1})
    frame = LastFrame(config)
    run_loop(up(config, Console(quiet=True), frame))
    frame.console.save_svg(str(arguments.out), title="make run")
    print(arguments.out)


if __name__ == "__main__":
    main()
