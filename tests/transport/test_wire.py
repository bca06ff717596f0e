"""The committed stubs are what the schema generates."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run([ROOT / "proto" / "generate.sh", tmp_path], check=True, env=environment, capture_output=True)
    for name in ("gossip_pb2.py", "gossip_pb2.pyi"):
        fresh, committed = (tmp_path / name).read_text(), (ROOT / "peer" / "wire" / name).read_text()
        assert fresh == committed, f"run proto/generate.sh: {name} is old"
