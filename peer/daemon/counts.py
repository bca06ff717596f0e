"""The metrics of one peer: what is counted as it happens, and the page of a scrape.

Counted here is what nothing else keeps: words, refusals, the loop's lag, seconds by activity, who came first and who last. It costs a few
additions a round. All else is read at a scrape from whoever counts it anyway (readings.py). Neither takes a lock or waits for anybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector

from peer.gossip.round import RoundReport
from peer.metrics import (
    ACTIVITIES,
    ACTIVITY,
    ANSWERS,
    BEGAN,
    CLOSED_FIRST,
    CLOSED_WORDS,
    CPU,
    DISTANCE,
    DROPPED,
    DROPS,
    EXCHANGE_WAIT,
    HTTP_ANSWERS,
    LOOP_LAG,
    MATCHINGS,
    MEMORY,
    MISSED,
    OPEN_FILES,
    REFUSED,
    ROUND_LENGTH,
    WAITED,
    WORDS,
    Distribution,
    Exposition,
    Sheet,
)

#: What two ends of a link may differ in beside their options; the other end may name anything.
FIELDS: Final = ("run", "num_peers", "fingerprint", "peer", "hello", "protocol", "duplicate", "data-plane")


class PeerMetrics:
    """run, peer: the labels of every sample. options: those that links compare, by which a refusal may be counted.

    Counting is for the event loop; `text` may be asked for on any thread.
    """

    def __init__(self, run: str, peer: int, options: Collection[str] = ()) -> None:
        self._page = Exposition(self._fill, run, str(peer))
        self._sources: list[Callable[[Sheet], None]] = []
        self._process = ProcessCollector(registry=None)
        self._fields = frozenset((*FIELDS, *options))
        self._words = Counter(dict.fromkeys(WORDS, 0))
        self._refused = Counter(dict.fromkeys((*FIELDS, "other"), 0))
        self._dropped = Counter(dict.fromkeys(DROPS, 0))
        self._answers = Counter(dict.fromkeys(ANSWERS, 0))
        self._closed_first = Counter({peer: 0})
        self._matchings: Counter[int] = Counter()
        self._missed: Counter[tuple[int, str]] = Counter()
        self._waited: dict[int, float] = {}
        self._computing = self._waiting = self._exchanging = self._mixing = self._until = 0.0
        self._distance: float | None = None
        self._lengths = Distribution(ROUND_LENGTH)
        self._exchange_waits = Distribution(EXCHANGE_WAIT)
        self._lags = Distribution(LOOP_LAG)

    def ask(self, source: Callable[[Sheet], None]) -> None:
        """From now on this fills in the sheet of every scrape as well."""
        self._sources.append(source)

    def neighbor(self, peer: int) -> None:
        """Tell of it from now on, though nothing has happened yet. Of the reasons of missed payloads one must do: all of all
        neighbours would be most of the page."""
        self._closed_first[peer] += 0
        self._waited.setdefault(peer, 0.0)
        self._missed[peer, "deadline"] += 0

    # what happens

    def word(self, kind: str) -> None:
        self._words[kind] += 1

    def refused(self, field: str) -> None:
        self._refused[field if field in self._fields else "other"] += 1

    def dropped(self, reason: str) -> None:
        self._dropped[reason] += 1

    def answered(self, status: int) -> None:
        self._answers[status] += 1

    def lag(self, seconds: float) -> None:
        self._lags.observe(seconds)

    def round(self, report: RoundReport) -> None:
        """Keep of it what the ledger does not."""
        began, total, computing, accumulating, exchanging, mixing = report.timing
        waiting = accumulating - computing
        self._computing += computing
        self._waiting += waiting
        self._exchanging += exchanging
        self._mixing += mixing
        self._until = began + total
        self._lengths.observe(total)
        self._exchange_waits.observe(exchanging)
        self._closed_first[report.closed_by] += 1
        for peer in report.waited_for:
            self._waited[peer] = self._waited.get(peer, 0.0) + waiting / len(report.waited_for)
        if report.lost:
            self._missed.update(report.lost.items())
        if report.active_matchings:
            self._matchings.update(report.active_matchings)
        if report.neighbor_distance is not None:
            self._distance = report.neighbor_distance

    # what is told of it

    def text(self) -> bytes:
        """What a scrape is answered with, of the type peer.metrics.CONTENT_TYPE."""
        return self._page.text()

    @property
    def registry(self) -> CollectorRegistry:
        """The same for the library's own server and formats."""
        return self._page.registry

    def _fill(self, sheet: Sheet) -> None:
        self._fill_rounds(sheet)
        sheet.spread(LOOP_LAG, self._lags)
        sheet.put_all(CLOSED_WORDS, self._words)
        sheet.put_all(REFUSED, self._refused)
        sheet.put_all(DROPPED, self._dropped)
        sheet.put_all(HTTP_ANSWERS, self._answers)
        process = {family.name: family.samples[0].value for family in self._process.collect()}
        for metric in (MEMORY, CPU, OPEN_FILES, BEGAN):
            value = process.get(metric.name.removesuffix("_total"))
            if value is not None:  # not on Linux
                sheet.put(metric, value)
        for source in self._sources:
            source(sheet)

    def _fill_rounds(self, sheet: Sheet) -> None:
        spent = (self._computing, self._waiting, self._exchanging, self._mixing)
        for activity, seconds in zip(ACTIVITIES, (*spent, max(self._until - sum(spent), 0.0)), strict=True):
            sheet.put(ACTIVITY, seconds, activity)
        for peer, seconds in list(self._waited.items()):
            sheet.put(WAITED, seconds, str(peer), "waiting")
        for (peer, reason), count in list(self._missed.items()):
            sheet.put(MISSED, count, str(peer), reason)
        if self._distance is not None:
            sheet.put(DISTANCE, self._distance)
        sheet.spread(ROUND_LENGTH, self._lengths)
        sheet.spread(EXCHANGE_WAIT, self._exchange_waits)
        sheet.put_all(CLOSED_FIRST, self._closed_first)
        sheet.put_all(MATCHINGS, self._matchings)
