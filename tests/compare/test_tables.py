"""Statistics over seeds, by hand; the CSV and the JSON say the same."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from peer.compare.results import Result
from peer.compare.tables import (
    COLUMNS,
    digits,
    median_run,
    remarks,
    row,
    summarise,
    summary_lines,
    write_csv,
    write_json,
)
from tests.compare.made import made


def by_hand() -> list[Result]:
    """barrier: 30, 40, 50; first: 9, 10, 20."""
    return [
        *[made(closing="barrier", seed=i, seconds=s) for i, s in enumerate((50.0, 30.0, 40.0))],
        *[made(closing="first", seed=i, seconds=s) for i, s in enumerate((10.0, 20.0, 9.0))],
    ]


def printed(results: list[Result]) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(summary_lines(results))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_speed_up_is_the_ratio_of_the_medians_over_seeds() -> None:
    barrier, first = summarise(by_hand())
    assert (barrier.seconds, barrier.least, barrier.most, barrier.speed_up) == (40.0, 30.0, 50.0, 1.0)
    assert (first.seconds, first.least, first.most, first.speed_up, first.at_least) == (10.0, 9.0, 20.0, 4.0, False)
    assert first.rate == 100.0
    assert first.rate_gain == pytest.approx(4.0)
    assert first.share_of_ceiling == pytest.approx(0.5)


def test_each_algorithm_and_scenario_has_a_barrier_of_its_own() -> None:
    results = [
        made(algorithm=a, scenario=s, closing=c, seconds=t)
        for s, a, c, t in (
            ("none", "dpsgd", "barrier", 10.0),
            ("none", "dpsgd", "first", 5.0),
            ("none", "matcha", "first", 5.0),
            ("one-4x", "dpsgd", "barrier", 40.0),
            ("one-4x", "dpsgd", "first", 5.0),
        )
    ]
    assert [entry.speed_up for entry in summarise(results)] == [1.0, 2.0, None, 1.0, 8.0]


def test_a_run_that_missed_the_target_counts_as_infinitely_long() -> None:
    two_of_three = [made(seed=i, seconds=s) for i, s in enumerate((10.0, None, 30.0))]
    (entry,) = summarise(two_of_three)
    assert (entry.seconds, entry.reached, entry.most) == (30.0, 2, None)
    assert "2 of 3 seeds, from 10.0" in printed(two_of_three)
    one_of_two = [made(seed=i, seconds=s) for i, s in enumerate((10.0, None))]
    assert summarise(one_of_two)[0].seconds is None
    assert "not reached" in printed(one_of_two)


def test_where_only_the_barrier_missed_it_its_length_bounds_the_speed_up_from_below() -> None:
    results = [made(closing="barrier", seconds=None), made(closing="first", seconds=10.0)]
    entry = summarise(results)[1]
    assert (entry.speed_up, entry.at_least) == (5.0, True)
    assert "> 5.00×" in printed(results)
    late = [made(closing="barrier", seconds=None), made(closing="first", seconds=60.0)]
    assert summarise(late)[1].speed_up is None


def test_what_nobody_knows_stays_unknown() -> None:
    nothing: dict[str, Any] = dict.fromkeys(("test_accuracy", "idle_fraction", "bytes_sent", "samples", "train_loss"))
    entry = summarise([made(seconds=None, error="peer 1 died", peers=[], curve=[], **nothing)])[0]
    assert (entry.failed, entry.test_accuracy, entry.idle_fraction, entry.speed_up) == (1, None, None, None)


def test_the_median_seed_is_the_lower_median() -> None:
    runs = [made(seed=i, seconds=s) for i, s in enumerate((30.0, None, 10.0, 20.0))]
    assert median_run(runs).cell.seed == 3


def test_markup_in_names_is_printed_as_it_is() -> None:
    assert "[red]odd[/nope]" in printed([made(scenario="[red]odd[/nope]")])


def test_csv_and_json_hold_one_equal_row_a_run(tmp_path: Path) -> None:
    results = [*by_hand(), made(scenario='a,"b"\nc', seconds=None, train_loss=math.nan)]
    rows = [row(result) for result in results]
    write_csv(rows, tmp_path / "results.csv")
    write_json(rows, summarise(results), tmp_path / "results.json")
    with (tmp_path / "results.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    kept = json.loads((tmp_path / "results.json").read_text())
    assert len(read) == len(kept["rows"]) == 7
    assert tuple(read[0]) == tuple(kept["rows"][0]) == COLUMNS
    assert read == [{name: "" if v is None else str(v) for name, v in entry.items()} for entry in kept["rows"]]
    assert kept["rows"][-1]["train_loss"] is None
    assert len(kept["summaries"]) == 3


def test_digits_never_use_an_exponent() -> None:
    assert [digits(x) for x in (0.123, 9.876, 56.78, 1234.5)] == ["0.12", "9.88", "56.8", "1,234"]


def test_remarks_say_what_the_table_does_not() -> None:
    """Rounds that are different amounts of work, and what backup workers cost."""
    limited = {"peers": 4, "max_rounds": 15}
    both = [
        made(algorithm="async-sgd", closing="none", seconds=None, config=limited),
        made(seconds=None, config=limited),
    ]
    (said,) = remarks(both, summarise(both))
    assert said.startswith("--max-rounds 15 is not the same work for all: a round of async-sgd is one gradient")
    assert remarks(both[:1], summarise(both[:1])) == remarks(by_hand(), summarise(by_hand())) == []
    costs: dict[str, Any] = {"wasted_fraction": 0.25, "sample_skew": 4 / 3, "least_share": 0.0}
    backups = [made(algorithm="sync-sgd", closing="barrier", **costs)]
    (said,) = remarks(backups, summarise(backups))
    assert said == (
        "sync-sgd barrier in scenario none: steps dropped 25.0% of all gradients; "
        "samples of a peer in updates, 0.00 to 1.33 of its fair share."
    )
    assert {name: row(backups[0])[name] for name in costs} == costs
    assert costs.keys() <= set(COLUMNS)
