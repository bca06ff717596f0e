"""What a process of its own does for test_tracing.py. Imports nothing of OpenTelemetry, which is the point."""

from __future__ import annotations

import asyncio
import json
import sys
from multiprocessing.connection import Connection

from tests.daemon.rig import Rig, config


def say_what_is_imported(end: Connection) -> None:
    """Forked from a server that has imported the command line and the daemon: plays a run without --tracing."""
    asyncio.run(Rig(config(peers=2, max_rounds=3), over="grpc").run())
    end.send_bytes(json.dumps([name for name in sys.modules if name.startswith("opentelemetry")]).encode())
    end.close()
