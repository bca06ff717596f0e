"""Which options an algorithm has for itself, what it has where nobody says anything, and what contradicts. Here and not with the
algorithms, because a config is read before torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peer.config import Config

#: Options that an algorithm needs otherwise than others do, where nobody says anything.
DEFAULTS_OF: Mapping[str, Mapping[str, object]] = {
    "sync-sgd": {"topology": "star"},
    "async-sgd": {"topology": "star", "closing": "none", "head_computes": False},
    "ad-psgd": {"closing": "none"},
    "noloco": {"topology": "complete"},
}
#: The same of an option that was given: backup workers are a barrier that does without some, and nothing of another round counts.
BACKUP_DEFAULTS = {"closing": "barrier", "in_flight": "redo"}
#: Algorithms in which one peer, the head, has the model.
WITH_HEAD = ("sync-sgd", "async-sgd")
#: Algorithms in which peers share no rounds.
WITHOUT_ROUNDS = ("async-sgd", "ad-psgd")

#: Options that mean nothing with other algorithms.
ONLY_FOR: Mapping[str, tuple[str, ...]] = {
    "head": WITH_HEAD,
    "head_computes": ("sync-sgd",),
    "backup_workers": ("sync-sgd",),
    "simulate_staleness": ("async-sgd",),
    "staleness_aware_lr": ("async-sgd",),
}


def usual(values: Mapping[str, object]) -> Mapping[str, object]:
    """What stands where these values, not validated yet, say nothing and it is not the field's own default."""
    algorithm = values.get("algorithm")
    own = DEFAULTS_OF.get(algorithm, {}) if isinstance(algorithm, str) else {}
    backups = BACKUP_DEFAULTS if values.get("backup_workers") not in (None, 0, "0") else {}
    return {**backups, **own}


def check_rounds(config: Config) -> None:
    """Raises ValueError if the closing policy does not suit the algorithm."""
    if (config.closing == "none") != (config.algorithm in WITHOUT_ROUNDS):
        if config.closing == "none":
            raise ValueError(
                f"closing: {config.algorithm} has rounds, and they must end; none is for {', '.join(WITHOUT_ROUNDS)}"
            )
        raise ValueError(
            f"closing: {config.algorithm} has no rounds that could be closed; use --closing none, or leave it out"
        )
    if config.algorithm in WITHOUT_ROUNDS and config.in_flight != "carry":
        raise ValueError(
            f"in_flight: a round of {config.algorithm} ends when its own quota is done, with nothing in flight; leave it out"
        )


def check_head(config: Config) -> None:
    """Raises ValueError for an option that means nothing with the algorithm, or contradicts another."""
    for name, methods in ONLY_FOR.items():
        if config.algorithm not in methods and getattr(config, name) != _default(config, name):
            raise ValueError(f"{name}: it is for {' and '.join(methods)}, and means nothing with {config.algorithm}")
    if config.algorithm not in WITH_HEAD:
        return
    if config.head >= config.peers:
        raise ValueError(
            f"head: there is no peer {config.head} among {config.peers}; ids go from 0 to {config.peers - 1}"
        )
    if not config.backup_workers:
        return
    if config.closing != "barrier":
        raise ValueError(
            f"backup_workers: with --closing {config.closing} nobody waits for the last gradients anyhow; use --closing barrier"
        )
    if config.in_flight == "carry":
        raise ValueError(
            "backup_workers: a chunk that is carried over is a gradient of an older x, which must not count; use --in-flight redo"
        )
    if config.backup_workers >= config.num_computing:
        raise ValueError(
            f"backup_workers: {config.backup_workers} of {config.num_computing} computing peers leave nobody to step with"
        )


def _default(config: Config, name: str) -> object:
    return DEFAULTS_OF.get(config.algorithm, {}).get(name, type(config).model_fields[name].default)
