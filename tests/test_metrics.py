"""The declarations of metrics, the page of a scrape, and the page of the docs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from peer import metrics
from peer.gossip.closing import CloseReason
from peer.metrics import EVERYWHERE, METRICS, UNITS, Distribution, Exposition, Kind, Metric, Sheet

#: In the order of the declaration, the safety net last.
CLOSE_REASONS = sorted(CloseReason, key=lambda reason: reason is CloseReason.TIMEOUT)
ROOT = Path(__file__).parents[1]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: bytes) -> Samples:
    """(name, labels) -> value, as the library's parser understands a page; NaN as a number that equals itself."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{key} is there twice"
            value = float(sample.value)
            found[key] = value if value == value else -12345.0
    return found


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"(grapevine|process)_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") is (metric.kind is Kind.COUNTER)
    assert metric.name.endswith("_info") is (metric.kind is Kind.INFO)
    assert not re.search(r"_(sum|count|bucket|created|milliseconds|ms|percent|kib|mb)\b", metric.name)
    if set(UNITS) & set(metric.name.split("_")):
        assert metric.unit, "the unit is the last word"
    assert bool(metric.buckets) is (metric.kind is Kind.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert not {"le", "quantile", "instance", "job", *EVERYWHERE} & set(metric.labels)
    assert all(re.fullmatch(r"[a-z_]+", name) and meaning for name, meaning in metric.labels.items())
    assert metric.help
    assert not metric.help.endswith(".")
    assert "\n" not in metric.help
    assert "\\" not in metric.help


def test_every_reason_of_a_close_is_documented() -> None:
    assert metrics.ROUNDS.labels["reason"].split(", ") == [str(reason) for reason in CLOSE_REASONS]


def test_no_name_is_declared_twice() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_the_page_of_the_docs_is_what_the_declarations_say() -> None:
    script = [sys.executable, "bench/metrics_page.py", "--check"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


VALUES = st.floats() | st.integers(0, 2**60)
WORDS = st.text(max_size=8) | st.sampled_from(['"', "\\", "\n", 'a"b\\n\nc', "\\\\", "{x}", ","])


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(st.tuples(WORDS, WORDS), VALUES, max_size=5),
    st.lists(st.floats(0, 200), max_size=20),
    VALUES,
    WORDS,
)
def test_a_page_says_what_the_library_would_write(
    by_labels: dict[tuple[str, str], float], observed: list[float], value: float, run: str
) -> None:
    """Values and labels may be anything; the library writes the same samples from the registry."""
    lengths = Distribution(metrics.ROUND_LENGTH)
    for seconds in observed:
        lengths.observe(seconds)

    def fill(sheet: Sheet) -> None:
        for (peer, reason), missed in by_labels.items():
            sheet.put(metrics.MISSED, missed, peer, reason)
        sheet.put(metrics.TRAIN_LOSS, value)
        sheet.spread(metrics.ROUND_LENGTH, lengths)
        sheet.summarize(metrics.EXCHANGE, value, 3, "7")
        sheet.choose(metrics.STATE, "training", ("starting", "training"))

    page = Exposition(fill, run, "3")
    first, again = page.text(), page.text()
    assert first == again
    assert samples(first) == samples(generate_latest(page.registry))
    types = dict(line.split(" ")[2:4] for line in first.decode().split("\n") if line.startswith("# TYPE"))
    assert types["grapevine_round_seconds"] == "histogram"
    assert types["grapevine_neighbor_exchange_seconds"] == "summary"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 200) | st.sampled_from(metrics.ROUND_LENGTH.buckets), max_size=50))
def test_a_distribution_counts_as_the_librarys_histogram(observed: list[float]) -> None:
    registry = CollectorRegistry()
    theirs = Histogram(
        "grapevine_round_seconds", "x", ["run", "peer"], buckets=metrics.ROUND_LENGTH.buckets, registry=registry
    ).labels("r", "0")
    mine = Distribution(metrics.ROUND_LENGTH)
    for value in observed:
        theirs.observe(value)
        mine.observe(value)
    expected = {k: v for k, v in samples(generate_latest(registry)).items() if not k[0].endswith("_created")}
    found = samples(Exposition(lambda sheet: sheet.spread(metrics.ROUND_LENGTH, mine), "r", "0").text())
    assert found == pytest.approx(expected)


def test_times_is_that_many_observations() -> None:
    once, many = Distribution(metrics.STALENESS), Distribution(metrics.STALENESS)
    many.observe(3, 5)
    for _ in range(5):
        once.observe(3)
    assert (once.counts, once.total) == (many.counts, many.total)
