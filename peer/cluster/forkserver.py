"""The process that all peers of a local cluster are forked from. Imports nothing heavy itself, so that it can be started first.

It imports torch and grpc once; each peer is a fork of it, so N peers do not pay for the imports N times.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

from peer.config import Config

#: glibc settings under which gRPC's buffers are reused instead of given back page by page (measured: +25-35 % of throughput).
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TOP_PAD_": "16777216",
}
PRELOAD = ["peer.cli.app", "peer.cluster.child", "peer.web.server", "peer.training.tasks.digits"]
#: What torch imports when it makes an optimizer, a second of work that peers would do one by one.
OF_OPTIMIZERS = "torch._dynamo"
#: Comes last.
FROZEN = "peer.cluster.frozen"


def context(config: Config | None = None) -> ForkServerContext:
    """The multiprocessing context of the peers; allocator settings take effect in it. config: theirs, from which follows what the server
    imports, if it is started now."""
    made = multiprocessing.get_context("forkserver")
    for name, value in ALLOCATOR.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    makes_optimizers = config is not None and (config.optimizer != "sgd" or ":" in config.task)
    made.set_forkserver_preload([*PRELOAD, *([OF_OPTIMIZERS] if makes_optimizers else []), FROZEN])
    return made


def start_early(config: Config | None = None) -> None:
    """Start the server now, so that its imports run beside the caller's own."""
    context(config)
    before = signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # inherited: ctrl-C during its imports must not kill the server
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
