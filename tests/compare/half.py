"""A simulating process that is interrupted while it sends its report."""

from __future__ import annotations

import os
import signal
import struct
import sys
import time

from peer.config import Config


def half_a_report(config: Config) -> None:
    """Stands for `play_virtually`: sends four bytes of a million, and the process called `run` is interrupted."""
    results = sys._getframe(1).f_locals["result_queue"]  # of the pool's loop
    os.write(results._writer.fileno(), struct.pack("!i", 1_000_000) + b"half")
    time.sleep(0.2)  # for it to be read
    os.kill(int(config.run), signal.SIGINT)
    time.sleep(100)
