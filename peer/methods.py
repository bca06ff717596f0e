"""What an algorithm has where nobody says anything. Here and not with the algorithms, because a config is read before torch is loaded;
tests/gossip/test_refusals.py holds it against their traits. What they refuse is in refusals.py."""

from __future__ import annotations

from collections.abc import Mapping

#: Options that an algorithm needs otherwise than others do, where nobody says anything.
DEFAULTS_OF: Mapping[str, Mapping[str, object]] = {
    "sync-sgd": {"topology": "star"},
    "async-sgd": {"topology": "star", "closing": "none", "head_computes": False},
    "ad-psgd": {"closing": "none"},
    "noloco": {"topology": "complete"},
}
#: The same of an option that was given: backup workers are a barrier that does without some, and nothing of another round counts.
BACKUP_DEFAULTS = {"closing": "barrier", "in_flight": "redo"}


def usual(values: Mapping[str, object]) -> Mapping[str, object]:
    """What stands where these values, not validated yet, say nothing and it is not the field's own default."""
    algorithm = values.get("algorithm")
    own = DEFAULTS_OF.get(algorithm, {}) if isinstance(algorithm, str) else {}
    backups = BACKUP_DEFAULTS if values.get("backup_workers") not in (None, 0, "0") else {}
    return {**backups, **own}
