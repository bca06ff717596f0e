"""Processor seconds and memory of a process and all its descendants, while it runs."""

from __future__ import annotations

import itertools
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Footprint:
    """cpu_seconds: of all processes seen, as they were last; one that lives between two samples is missed. peak_bytes: most memory of all
    together at one sample, proportional set size (a page that n processes share counts 1/n in each); looked at more rarely, because it
    takes the kernel a walk through all pages."""

    root: int
    every_seconds: float = 0.2
    memory_every: int = 25
    peak_bytes: int = 0
    _cpu: dict[int, float] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Footprint:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def cpu_seconds(self) -> float:
        return sum(self._cpu.values())

    def _watch(self) -> None:
        for sample in itertools.count(1):
            if self._over.wait(self.every_seconds):
                return
            family = self._sample()
            if sample % self.memory_every == 0:
                self.peak_bytes = max(self.peak_bytes, sum(map(proportional_bytes, family)))

    def _sample(self) -> list[int]:
        """Processes of the run, and their processor time."""
        children: dict[int, list[int]] = {}
        seconds: dict[int, float] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            pid = int(entry.name)
            children.setdefault(int(words[1]), []).append(pid)
            seconds[pid] = (int(words[11]) + int(words[12])) / TICK
        family = [self.root]
        for pid in family:
            family += children.get(pid, [])
        self._cpu |= {pid: seconds[pid] for pid in family if pid in seconds}
        return family


def proportional_bytes(pid: int) -> int:
    """0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
