"""Finished runs of a bench in a file, so that an interrupted bench goes on; whole or not at all, and of one setting only."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any


class Kept:
    """runs: by key. Ends the bench with a sentence if the file holds runs of other settings."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self._path, self._settings, self._lock = path, settings, threading.Lock()
        self._commits: list[str] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        before = json.loads(path.read_text())
        different = {name: old for name, old in before["settings"].items() if settings.get(name, old) != old}
        if different:
            raise SystemExit(f"{path} holds runs of other settings ({different}): give the same, or another --out")
        self.runs, self._commits = before["runs"], before.get("commits", [])

    def add(self, key: str, run: dict[str, Any]) -> None:
        """Keep a finished run."""
        with self._lock:
            self.runs[key] = run
            if (now := commit()) not in self._commits:
                self._commits.append(now)
            partial = self._path.with_suffix(".partial")
            content = {"settings": self._settings, "commits": self._commits, "runs": self.runs}
            partial.write_text(json.dumps(content, indent=1) + "\n")
            partial.replace(self._path)


def commit(here: Path = Path(__file__).parents[1]) -> str:
    """The checked-out commit, with a + if the tree has changes in the code."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (
        "+" if git("status", "--porcelain", "peer", "topology", "bench/*.py") else ""
    )
