"""Writes docs/metrics.md from the declarations in peer/metrics.py.

    python bench/metrics_page.py [--check]

--check: write nothing, and end with 1 if the committed page is not what would be written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peer.metrics import METRICS, SECTIONS, Metric

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"

HEAD = """# Metrics

<!-- Written by `python bench/metrics_page.py` from peer/metrics.py, where every metric is declared. Change it there. -->

Every peer serves its {number} metrics for Prometheus at `/metrics` of `--metrics-port` (`up` gives its peers consecutive ports; 0 is
any free one, -1 none). A scrape takes no lock and waits for nothing, least of all for training: most numbers are read from whoever
counts them anyway, and what only the metrics need costs a few additions a round.

| what | processor time |
|---|---|
| a scrape of a peer with 64 neighbours: 1180 lines | 2.8 ms |
| the same, written by prometheus_client | 14 ms |
| counting a round | 2.1 us |

Measured by `python bench/scrape.py` on a two-core machine that others used too. Counting a round took 39 us when each number was a
prometheus_client counter (2 neighbours, the same machine).

## How to read them

- **Names** are Prometheus' own conventions: base units, `_total` behind a counter. A histogram is also `_bucket`, `_sum` and `_count`,
  a summary `_sum` and `_count`: the mean is `rate(x_sum[1m]) / rate(x_count[1m])`.
- **Labels are bounded.** Their values are fixed sets, or ids of peers, of which there are as many as peers in the run; `neighbor` only
  takes those of peers that were linked. What others send never becomes a label: it is counted as `other`. The
  values of fixed sets are there from the start, with 0: for Prometheus a counter that appears with 1 has not increased. (Of missed
  payloads only the reason `deadline`; the others appear with their first event.)
- **Every sample has the labels `run`** (`--run`) **and `peer`** (the id of the scraped peer): runs that follow each other on the same ports
  stay apart, and where peers are found by DNS an address says nothing.
- **Shares of time.** The activities of `grapevine_activity_seconds_total` are a partition of the time since training began, up to the
  end of the last finished round: `rate(grapevine_activity_seconds_total[1m])` adds up to 1. They say what the *round* was at. The
  *trainer* goes on computing a carried chunk while the round exchanges and mixes; what it does is in `grapevine_trainer_seconds_total`,
  which adds up to 1 as well, and its idle share is `rate(grapevine_trainer_seconds_total{{state="idle"}}[1m])`; `grapevine_idle_ratio`
  is that since the start.
- **The straggler map.** `rate(grapevine_waited_seconds_total[1m])` is the share of its time that the scraped peer waits for another,
  before the close (for a word; only a barrier does that) or after it (for a payload or a vote). Summed over `waited_for` they are the
  activities waiting and exchanging, but for what nobody else is to blame for. Where nobody waits, `grapevine_rounds_closed_first_total`
  tells who is fast.
- **NaN.** `increase(grapevine_chunks_total{{fate="nonfinite"}}[5m]) > 0`; after `--nonfinite-limit` chunks in a row the peer ends.
- **Consensus distance.** `grapevine_neighbor_distance` needs no traffic of its own: it is what a peer sees of the models that came to
  be mixed. That of all models from their mean needs all models: `grapevine up` shows it and the [report](report.md) has it, no peer
  knows it.
- **Evaluation.** `grapevine_train_loss` costs nothing and is of this peer's own samples. With `--metrics-eval-every 10` a peer also
  judges its own model on the test set every 10 seconds, in a thread of its own, on a copy; it takes its time, never more than a tenth
  of a core, so that a large test set is judged less often. The digits take 4.5 ms (`grapevine_evaluation_seconds` of 19 evaluations in
  `grapevine up --peers 4 --max-seconds 20 --metrics-eval-every 1`). Without the option there are no `grapevine_eval_*`. `grapevine up`
  evaluates the mean model outside the peers (`--eval-every`), which no peer could tell.
- **Rounds in progress** are not counted before they end: with rounds of 30 s, ask for rates over minutes.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text)
    elif PAGE.read_text() != text:
        sys.exit(f"{PAGE.name} is not what peer/metrics.py declares: python bench/metrics_page.py writes it")


def page() -> str:
    """The whole of docs/metrics.md."""
    parts = [HEAD.format(number=len(METRICS))]
    for title, metrics in SECTIONS.items():
        rows = "\n".join(map(_row, metrics))
        parts.append(f"## {title}\n\n| metric | kind | labels | what it says |\n|---|---|---|---|\n{rows}\n")
    return "\n".join(parts)


def _row(metric: Metric) -> str:
    labels = "; ".join(f"`{name}`: {meaning}" for name, meaning in metric.labels.items())
    buckets = f". Buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}" if metric.buckets else ""
    unit = f", {metric.unit}" if metric.unit else ""
    cells = (f"`{metric.name}`", f"{metric.kind}{unit}", labels, metric.help + buckets)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


if __name__ == "__main__":
    main()
