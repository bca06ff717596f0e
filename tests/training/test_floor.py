"""Nothing in peer/training reaches up to the transport or the daemon, or knows asyncio."""

from __future__ import annotations

import ast
from pathlib import Path

import peer.training

FORBIDDEN = ("asyncio", "grpc", "peer.transport", "peer.daemon", "peer.sim", "peer.wire", "sklearn")


def test_imports_stay_on_this_floor() -> None:
    for path in Path(peer.training.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert not any(name == bad or name.startswith(bad + ".") for bad in FORBIDDEN), f"{path}: {name}"
