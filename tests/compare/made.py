"""Results made by hand: small reports whose statistics one can do in one's head."""

from __future__ import annotations

from typing import Any

from peer.compare.results import Cell, Result


def made(
    scenario: str = "none",
    algorithm: str = "dpsgd",
    closing: str = "first",
    seed: int = 0,
    *,
    seconds: float | None = 10.0,
    **report: Any,
) -> Result:
    """A run of two peers that got to loss 0.1 after so many seconds, or did not within 50."""
    wall = 50.0 if seconds is None else seconds
    content: dict[str, Any] = {
        "error": None,
        "seconds_to_target": seconds,
        "wall_seconds": wall,
        "rounds": 4,
        "samples": 1000,
        "train_loss": 0.3 if seconds is None else 0.1,
        "test_accuracy": 0.9,
        "worst_peer_test_accuracy": 0.8,
        "consensus_distance": 0.01,
        "idle_fraction": 0.25,
        "finished_fraction": 1.0,
        "max_staleness": 1,
        "bytes_sent": 4000,
        "curve": [_look(wall * i / 4, i) for i in range(5)],
        "peers": [_peer(i, wall) for i in range(2)],
        "config": {"run": "grapevine", "peers": 2, "seed": seed, "target_loss": 0.1, "lr": 0.3, "straggler": []},
        "machine": {"cpus": 2, "python": "3.11", "torch": "2", "platform": "Linux"},
    }
    theory = {
        "ceiling_samples_per_second": 200.0,
        "reached_samples_per_second": 1000 / wall,
        "share_of_ceiling": 5 / wall,
        "expected_speed_up": None,
    }
    return Result(Cell(scenario, algorithm, closing, seed), {**content, **report}, theory)


def _look(seconds: float, i: int) -> dict[str, float]:
    return {"seconds": seconds, "rounds": i, "loss": 2.0 / (1 + i), "consensus_distance": 0.1 * i, "samples": 250 * i}


def _peer(peer: int, wall: float) -> dict[str, Any]:
    length = wall / 8
    starts = [i * length for i in range(8)]
    return {
        "peer": peer,
        "bytes_sent": 2000 + peer,
        "bytes_received": 2001 - peer,
        "staleness": {"0": 30, "1": 2},
        "seconds": wall,
        "idle_fraction": 0.25,
        "timeline": [[t, t + 0.6 * length, t + 0.9 * length, t + length] for t in starts],
    }
