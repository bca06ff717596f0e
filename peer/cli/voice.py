"""What a command tells its user: on standard output, or with `--log-format json` as lines of the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType

from peer.logs import as_json, event

log = logging.getLogger("grapevine.run")


class Voice:
    """Says everything once, to people or to programs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.as_json = as_json()

    def say(self, sentence: str, name: str, *, style: str | None = None, **facts: object) -> None:
        """A line; name: of the event, with its facts."""
        if self.as_json:
            log.info("%s", sentence, extra=event(name, **facts))
        else:
            self.console.print(sentence, style=style, markup=False)

    def show(self, picture: RenderableType, sentence: str, name: str, **facts: object) -> None:
        """What takes more than a line for people: `picture`."""
        if self.as_json:
            log.info("%s", sentence, extra=event(name, **facts))
        else:
            self.console.print(picture)

    def summary(self, picture: RenderableType, report: Mapping[str, Any]) -> None:
        """The end of a run: all numbers of the report that are about the whole of it."""
        facts = {name: value for name, value in report.items() if isinstance(value, bool | int | float | str | None)}
        ended = report["error"] or report["stop_reason"]
        self.show(picture, f"the run is over after {report['wall_seconds']:.1f} s: {ended}", "summary", **facts)
