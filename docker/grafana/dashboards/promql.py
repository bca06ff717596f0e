"""The expressions that dashboards are made of. `chosen` is a selector without braces, `by` the labels that stay."""

from __future__ import annotations

#: At least four scrapes long, and long enough for the width of the panel.
RATE = "[$__rate_interval]"


def rate(metric: str, chosen: str, *by: str) -> str:
    """Growth per second of a counter, summed."""
    return f"{_sum(by)} (rate({metric}{{{chosen}}}{RATE}))"


def share(metric: str, chosen: str, *by: str, within: tuple[str, ...] = ()) -> str:
    """Of the growth of a counter: what has the labels `by`, of all that has the labels `within`."""
    whole = rate(metric, chosen, *within)
    return f"{rate(metric, chosen, *within, *by)} / on ({', '.join(within)}) group_left () {whole}"


def mean(metric: str, chosen: str, *by: str, over: str = RATE) -> str:
    """Mean observation of a histogram or summary."""
    total, number = (f"{_sum(by)} (rate({metric}_{part}{{{chosen}}}{over}))" for part in ("sum", "count"))
    return f"{total} / {number}"


def quantile(q: float, metric: str, chosen: str, *by: str) -> str:
    """Of the observations of a histogram."""
    return f"histogram_quantile({q}, {rate(metric + '_bucket', chosen, *by, 'le')})"


def idle(chosen: str, *by: str) -> str:
    """Share of the trainers' time in which they had nothing to compute."""
    metric, nothing = "grapevine_trainer_seconds_total", f'{chosen},state="idle"'
    return f"{rate(metric, nothing, *by)} / {rate(metric, chosen, *by)}"


def applied(chosen: str, *by: str) -> str:
    """Samples per second whose gradient went into an update."""
    return rate("grapevine_samples_total", f'{chosen},fate="applied"', *by)


def renamed(expr: str, label: str, new: str, text: str = "$1") -> str:
    """With a label more: the value of another, in a text."""
    return f'label_replace({expr}, "{new}", "{text}", "{label}", "(.*)")'


def _sum(by: tuple[str, ...]) -> str:
    return f"sum by ({', '.join(by)})" if by else "sum"
