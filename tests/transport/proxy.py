"""A TCP proxy that can be cut (connections die), stalled (they fall silent) and healed."""

from __future__ import annotations

import asyncio

LOOP_TURNS_TO_ACCEPT = 5


class Proxy:
    """Listens on a port of its own and forwards to `target`, "host:port"."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._whole = True
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def stall(self) -> None:
        """Nothing is forwarded any more, nobody is told."""
        self._flowing.clear()

    def cut(self) -> None:
        """Connections die; new ones die at once."""
        self._whole = False
        for writer in self._writers:
            writer.transport.abort()

    def heal(self) -> None:
        self._whole = True
        self._flowing.set()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for _ in range(
            LOOP_TURNS_TO_ACCEPT
        ):  # whoever was let in before comes to _accept now, not when nobody closes it any more
            await asyncio.sleep(0)
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self._whole:
                their_reader, their_writer = await asyncio.open_connection(self._host, self._port)
                self._writers.add(their_writer)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, their_writer))
                    group.create_task(self._pump(their_reader, writer))
                their_writer.close()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(65536):
                await self._flowing.wait()
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()
