"""What the process that peers are forked from imports before the first of them."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import forkserver

import pytest

from peer.cluster.forkserver import OF_OPTIMIZERS, context
from peer.config import validated


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The server of all tests may not have been started yet."""
    yield
    context()


@pytest.mark.parametrize(
    ("options", "makes_optimizers"),
    [({}, False), ({"optimizer": "adam"}, True), ({"task": "tests.daemon.tasks:Linear"}, True)],
    ids=["plain SGD", "adam", "a task that may bring its own"],
)
def test_what_torch_imports_for_optimizers_is_imported_once_where_peers_make_some(
    options: dict[str, object], makes_optimizers: bool
) -> None:
    context(validated(options))
    modules = forkserver._forkserver._preload_modules  # type: ignore[attr-defined]
    assert (OF_OPTIMIZERS in modules) is makes_optimizers
    assert modules[-1] == "peer.cluster.frozen", "what is imported after it is not frozen"
