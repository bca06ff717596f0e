"""What the peers of the cell that is being played do, for the terminal. It runs in processes of its own; its log says where they are."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any, Final

from peer.accounts.observation import Observation
from peer.cluster.crawl import Crawl
from peer.cluster.table import Row
from peer.transport.client import PeerUnreachable

EVERY_SECONDS: Final = 0.5
TIMEOUT_SECONDS: Final = 1.0


class CellWatch:
    """curve: of the mean model, from the log. rows: of the peers, which are asked on a thread and an event loop of their own, because the
    main thread waits for the log. Use as a context."""

    def __init__(self) -> None:
        self.curve: list[Observation] = []
        self.rows: Sequence[Row] = ()
        self._address = ""  # of a peer of the cell; empty: there is none to ask
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()), name="cell watch", daemon=True)

    def __enter__(self) -> CellWatch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(2 * TIMEOUT_SECONDS)

    def forget(self) -> None:
        """Another cell begins."""
        self._address, self.rows, self.curve = "", (), []

    def heard(self, said: Mapping[str, Any]) -> None:
        """A line of the cell's log. Its null is a number that is not finite."""
        if said.get("event") == "ready":
            self._address = said["address"]
        elif said.get("event") == "progress":
            told = {field.name: said[field.name] for field in fields(Observation)}
            numbers: dict[str, Any] = {name: math.nan if value is None else value for name, value in told.items()}
            self.curve.append(Observation(**numbers))

    async def _ask(self) -> None:
        crawl, asked = None, ""
        while not self._over.is_set():
            address = self._address
            if address != asked:
                if crawl is not None:
                    await crawl.close()
                crawl, asked = Crawl(address, TIMEOUT_SECONDS) if address else None, address
            if crawl is not None:
                with suppress(PeerUnreachable):  # it has ended; the log will say so
                    await crawl.look()
                if self._address == asked:
                    self.rows = list(crawl.rows.values())
            await asyncio.sleep(EVERY_SECONDS)
        if crawl is not None:
            await crawl.close()
