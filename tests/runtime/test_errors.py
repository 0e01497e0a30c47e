"""What a process says of those that do not answer."""

import pytest

from specmoe.runtime import errors
from specmoe.runtime.errors import ExchangeError, others_answer


@pytest.mark.parametrize(
    ("silent", "said"),
    [
        ([], "another process ended or failed"),
        ([1], "process 1 does not answer any more"),
        ([1, 3], "processes 1 and 3 do not answer any more"),
        ([0, 1, 3], "processes 0, 1 and 3 do not answer any more"),
    ],
)
def test_a_collective_that_fails_names_the_silent(monkeypatch, silent, said):
    monkeypatch.setattr(errors, "silent_processes", lambda: silent)
    with pytest.raises(ExchangeError) as caught, others_answer(2, "MoE layer 0"):
        raise RuntimeError("connection closed")
    assert str(caught.value) == f"process 2 had to stop in MoE layer 0: {said}; see its own message"
