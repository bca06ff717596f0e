"""What a process of ours asks of the machine before it runs its loop."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (128, int(sys.argv[1])))
from peer.daemon.process import run_loop

async def main():
    for _ in range(int(sys.argv[2])):
        os.pipe()
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))

run_loop(main())
"""


@pytest.mark.processes
@pytest.mark.parametrize(("allowed", "pipes"), [(1000, 200), (128, 0)])
def test_a_process_takes_the_file_descriptors_that_it_may(allowed: int, pipes: int) -> None:
    """It is started with 128; where the machine allows no more it runs all the same."""
    command = [sys.executable, "-c", PROGRAM, str(allowed), str(pipes)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout.split() == [str(allowed), str(allowed)], ran.stderr
