"""The real Prometheus on loopback, with the shipped configuration, its clock faster: every duration in it divided by FASTER."""

from __future__ import annotations

import json
import re
import select
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

SHIPPED = Path(__file__).parents[2] / "docker" / "prometheus"
FASTER = 12
SCRAPE_SECONDS = 5 / FASTER
PATIENCE_SECONDS = 45.0
T = TypeVar("T")


def faster(text: str) -> str:
    """The durations of a configuration, of rules or of a query, divided by FASTER. Names like rate1m stay."""
    seconds = {"s": 1, "m": 60, "h": 3600}
    return re.sub(
        r"(?<![\w.])(\d+)([smh])\b", lambda found: f"{int(found[1]) * seconds[found[2]] * 1000 // FASTER}ms", text
    )


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """What the HTTP API answers. Raises AssertionError with its reason."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with closing(urllib.request.urlopen(address, timeout=10)) as answer:
                said = json.load(answer)
        except urllib.error.HTTPError as error:
            said = json.loads(error.read())
            error.close()
        assert said["status"] == "success", said
        return said["data"]

    def instant(self, expr: str) -> list[dict[str, Any]]:
        """The series [labels, value] of an expression now."""
        data = self.get("query", query=expr)
        assert data["resultType"] == "vector", data["resultType"]
        found: list[dict[str, Any]] = data["result"]
        return found

    def range(self, expr: str, seconds: float) -> list[dict[str, Any]]:
        """The series [labels, values] of an expression over the last so many seconds."""
        now = time.time()
        data = self.get(
            "query_range", query=expr, start=f"{now - seconds:.3f}", end=f"{now:.3f}", step=f"{SCRAPE_SECONDS:.3f}"
        )
        assert data["resultType"] == "matrix", data["resultType"]
        found: list[dict[str, Any]] = data["result"]
        return found

    def until(self, expr: str, said: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Ask again until the answer is as hoped."""
        until(lambda: self.instant(expr), said)

    def addresses(self) -> set[str]:
        """What it scrapes."""
        return {target["scrapeUrl"] for target in self.get("targets", state="active")["activeTargets"]}


def static(targets: Sequence[int]) -> str:
    """docker/prometheus/prometheus-static.yml, faster, for these ports of 127.0.0.1."""
    addresses = ", ".join(f'"127.0.0.1:{target}"' for target in targets)
    config = faster((SHIPPED / "prometheus-static.yml").read_text())
    config, replaced = re.subn(r"- targets: \[.*\]", f"- targets: [{addresses}]", config)
    assert replaced == 1
    return config


@contextmanager
def running(folder: Path, port: int, config: str, *before: str) -> Iterator[Prometheus]:
    """Prometheus with this configuration and the shipped rules, faster. before: words that its command line begins with."""
    (folder / "rules").mkdir()
    for rules in (SHIPPED / "rules").glob("*.yml"):
        (folder / "rules" / rules.name).write_text(faster(rules.read_text()))
    (folder / "prometheus.yml").write_text(config)
    listen = f"127.0.0.1:{port}"
    options = {"--config.file": "prometheus.yml", "--storage.tsdb.path": "data", "--web.listen-address": listen}
    words = [*before, "prometheus", *(f"{option}={value}" for option, value in options.items())]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(words, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        try:
            yield Prometheus(f"http://{_ready(listen, process, folder / 'log')}")
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _ready(listen: str, process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        try:
            with closing(urllib.request.urlopen(f"http://{listen}/-/ready", timeout=1)):
                return listen
        except OSError:
            select.select([], [], [], 0.05)


def until(ask: Callable[[], T], said: Callable[[T], bool]) -> None:
    """Ask again, at most as often as anything is new, until the answer is as hoped."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not said(answer := ask()):
        assert time.monotonic() < end, f"it never came true: {answer}"
        select.select([], [], [], SCRAPE_SECONDS)


def finite(value: str) -> bool:
    """Of a sample, as the API writes it."""
    return value not in ("NaN", "+Inf", "-Inf")


def labels_of(series: Mapping[str, Any]) -> set[str]:
    return set(series["metric"])
