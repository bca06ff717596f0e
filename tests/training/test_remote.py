"""A computer in a process of its own, from processes that have no threads yet."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peer.cluster.forkserver import context
from tests.training import elsewhere


@pytest.mark.processes
@pytest.mark.parametrize(
    "check",
    [
        elsewhere.equal_bits,
        elsewhere.a_task_that_raises_is_told_and_goes_on,
        elsewhere.a_process_that_dies_says_how,
        elsewhere.a_chunk_under_way_can_be_interrupted,
        elsewhere.a_process_that_stands_still_is_told_from_one_that_works,
        elsewhere.files_of_the_task_stay_open_and_sockets_do_not,
        elsewhere.other_devices_are_refused,
    ],
    ids=lambda check: check.__name__,
)
def test_a_computer_elsewhere(check: Callable[[], None]) -> None:
    process = context().Process(target=check)
    process.start()
    process.join(40)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0, "its traceback is on standard error"
