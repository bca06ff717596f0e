"""Where mathematics runs beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

INLINE: Final = 1 << 18
"""Elements times passes over them up to which the work is shorter than handing it to another thread."""

T = TypeVar("T")


class OffLoop(Protocol):
    """Does work where it does not hold up the event loop: at once if it is little, else on a thread."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]: ...


class Worker:
    """One thread. num_elements: of the vectors that are worked on. passes: over one of them that the work takes, roughly."""

    def __init__(self, num_elements: int, passes: int) -> None:
        #: Whether the vectors are so small that the work is done on the event loop.
        self.is_inline = num_elements <= INLINE // passes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grapevine-math")

    async def __call__(self, work: Callable[[], T]) -> T:
        """Run on the thread, or right here if the vectors are small."""
        if self.is_inline:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown(wait=True)
