"""Fixtures: a rig on every carrier, and on the memory network only."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from .rig import Rig


@pytest.fixture(params=["memory", "grpc", "tcp", "unix"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    made = Rig(request.param)
    yield made
    await made.stop()


@pytest.fixture
async def memory_rig() -> AsyncIterator[Rig]:
    made = Rig("memory")
    yield made
    await made.stop()


@pytest.fixture
async def grpc_rig() -> AsyncIterator[Rig]:
    made = Rig("grpc")
    yield made
    await made.stop()
