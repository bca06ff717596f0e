"""The page stands alone, is well formed, escapes what it is told, and shows what there is, however little."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from peer.compare.page import element, headline, render, write_comparison
from peer.compare.results import Result, matrix
from peer.compare.run import config_of
from peer.compare.tables import summarise
from peer.compare.theory import theory
from peer.config import validated
from peer.sim.play import simulate
from tests.compare.made import made

VOID = {"meta", "link", "br", "img", "hr"}
HOSTILE = "<script>alert('x')</script> & \"quotes\" $x_{"


class Strict(HTMLParser):
    """Fails where tags do not pair; collects ids, texts and all that refers to something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                self.references.append(value or "")
            self.references += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: Path) -> Strict:
    parser = Strict()
    parser.feed(page.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def simulated() -> list[Result]:
    """Two seeds of two closings, with one device four times slower, in virtual time; they stop soon."""
    base = validated({"peers": 4, "lr": 0.3, "chunk_seconds": 0.03, "target_loss": 2.28, "task": "digits"})
    results = []
    for cell in matrix(["one-4x"], ["dpsgd"], ["barrier", "first"], 2):
        config = config_of(cell, base)
        report = simulate(config)
        results.append(Result(cell, json.loads(json.dumps(report)), theory(config, report, 0.03)))
    return results


@pytest.fixture(scope="module")
def written(simulated: list[Result], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_comparison(tmp_path_factory.mktemp("compared"), simulated)


def test_every_file_exists_and_holds_something(written: list[Path]) -> None:
    assert {"report.html", "results.csv", "results.json"} <= {path.name for path in written}
    kinds = ("time-to-target", "loss-seconds", "loss-samples", "gantt", "consensus", "bytes", "staleness")
    for kind in kinds:
        assert {path.suffix for path in written if path.name.startswith(kind)} == {".svg", ".png"}, kind
    assert all(path.stat().st_size > 200 for path in written)
    for path in written:
        if path.suffix == ".svg":
            ElementTree.parse(path)


def test_the_page_is_well_formed_and_refers_to_nothing_outside(written: list[Path]) -> None:
    page = parsed(written[0])
    assert len(page.ids) == len(set(page.ids))
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert "script" not in page.tags
    assert "@import" not in written[0].read_text()


def test_the_text_of_plots_is_text(written: list[Path]) -> None:
    assert "dpsgd barrier" in next(path for path in written if path.name == "time-to-target.svg").read_text()


def test_a_simulated_comparison_finds_the_straggler_ignored(written: list[Path], simulated: list[Result]) -> None:
    page = parsed(written[0])
    assert re.search(r"In scenario one-4x \(one device is four times slower\), dpsgd first .*× sooner", page.text)
    assert "in virtual time" in page.text
    barrier, first = summarise(simulated)
    assert first.speed_up is not None
    assert first.speed_up > 2
    assert (barrier.idle_fraction or 0) > 0.5


def test_hostile_names_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    results = [
        made(scenario=HOSTILE, algorithm=HOSTILE, closing=c, seconds=s) for c, s in (("first", 5.0), ("barrier", 9.0))
    ]
    odd: dict[str, Any] = {**results[0].report["config"], "run": HOSTILE}
    results.append(made(scenario="x/<script>", closing="first", config=odd, machine={"platform": "</style><script>"}))
    written = write_comparison(tmp_path, results)
    page = parsed(written[0])
    assert "script" not in page.tags
    assert "<script>" in page.text
    assert all(re.fullmatch(r"[a-z0-9.-]+", path.name) for path in written)


def test_scenarios_of_the_same_file_name_get_files_of_their_own(tmp_path: Path) -> None:
    written = write_comparison(tmp_path, [made(scenario="a/x.toml"), made(scenario="b/x.toml")])
    assert len(set(written)) == len(written)
    assert parsed(written[0]).text.count("consensus distance") >= 2


@pytest.mark.parametrize("seconds", [12.0, None])
def test_one_run_is_enough_whether_it_reached_the_target_or_not(tmp_path: Path, seconds: float | None) -> None:
    text = parsed(write_comparison(tmp_path, [made(seconds=seconds)])[0]).text
    assert ("not reached" in text) == (seconds is None)
    assert "One seed" in text


def test_missing_data_leaves_plots_out_and_crashes_nothing(tmp_path: Path) -> None:
    unknown: dict[str, Any] = dict.fromkeys(("train_loss", "test_accuracy", "idle_fraction", "bytes_sent", "samples"))
    failed = made(seconds=None, error="peer 1 died", peers=[], curve=[], **unknown)
    written = write_comparison(tmp_path, [failed])
    assert [path.name for path in written] == ["report.html", "results.csv", "results.json"]
    assert "1 failed" in parsed(written[0]).text


def test_null_losses_in_a_curve_are_left_out(tmp_path: Path) -> None:
    curve = [
        {"seconds": s, "rounds": s, "loss": loss, "consensus_distance": None, "samples": s}
        for s, loss in ((0, 2.0), (1, None))
    ]
    names = [path.name for path in write_comparison(tmp_path, [made(curve=curve)])]
    assert "loss-seconds-none.svg" in names
    assert "consensus-none.svg" not in names


def test_the_headline_says_what_there_is_to_say() -> None:
    def said(*results: Result) -> str:
        return headline(results, summarise(results))

    barrier, first = made(closing="barrier", seconds=39.0), made(closing="first", seconds=10.0)
    scenario = "In scenario none (all devices are alike), dpsgd first reaches loss 0.1 in 10.0 s"
    assert said(barrier, first) == f"{scenario}, 3.9× sooner than dpsgd barrier."
    assert (
        said(made(closing="barrier", seconds=None), first) == f"{scenario}, more than 5.0× sooner than dpsgd barrier."
    )
    assert said(first) == f"{scenario}."
    assert said(made(closing="barrier", seconds=9.0), first) == (
        "No closing policy reaches loss 0.1 more than 5% sooner than barrier."
    )
    assert said(made(seconds=None)) == "No method reached loss 0.1."
    assert said(made(seconds=None, config={"peers": 2})) == "These runs had no target loss."


def test_the_page_says_that_rounds_are_not_the_same_work() -> None:
    limited = {"peers": 4, "max_rounds": 15}
    results = [made(algorithm=name, seconds=None, config=limited) for name in ("async-sgd", "dpsgd")]
    page = render(results, summarise(results), [])
    assert "--max-rounds 15 is not the same work for all" in page
    assert "it is the head" in page


def test_elements_escape_texts_and_attributes_but_not_elements() -> None:
    assert element("p", element("b", "<"), "&", class_='"') == '<p class="&quot;"><b>&lt;</b>&amp;</p>'
