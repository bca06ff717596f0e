"""Two hosts between which no packet passes for a while, and no error either; with root and iproute2 only (network namespaces)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "silent_cut.py"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"),
]


def played(*options: str) -> dict[str, Any]:
    """What the bench prints."""
    with subprocess.Popen(
        [sys.executable, str(BENCH), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = process.communicate(timeout=110)
        except subprocess.TimeoutExpired:
            process.terminate()  # not killed: its peers and namespaces would stay
            out, err = process.communicate(timeout=50)
    if "Operation not permitted" in err:
        pytest.skip("this machine lets nobody make network namespaces")
    assert process.returncode == 0, err
    told: dict[str, Any] = json.loads(out)
    return told


def test_peers_go_on_alone_and_talk_again_soon_after_a_silent_cut() -> None:
    """Eight seconds are long enough for TCP to back off for as long again, and for gRPC's default channel. The promise is two seconds
    (peer/transport/README.md has what was measured over a minute's cut); the rest is for a loaded machine."""
    told = played("--seconds", "8", "--no-reference")
    for noticed, again in zip(told["noticed_seconds"], told["again_seconds"], strict=True):
        assert noticed is not None
        assert noticed < 8
        assert again is not None
        assert again < 5


@pytest.mark.skipif(shutil.which("iptables") is None or shutil.which("ss") is None, reason="needs iptables and ss")
def test_vectors_take_grpc_soon_after_their_connection_alone_was_cut() -> None:
    """Fifteen seconds of silence and two for a door that does not answer; the rest is for a loaded machine."""
    told = played("--vectors")
    noticed = [seconds for seconds in told["noticed_seconds"] if seconds is not None]
    assert noticed
    assert 15 < min(noticed) < 30
    assert told["on_grpc_seconds"] is not None
    assert all(again is not None for again in told["again_seconds"])
