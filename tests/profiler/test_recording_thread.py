"""Recording beside the model: in order, at most one batch behind, and no failure is lost."""

import threading
from typing import Any

import numpy as np
import pytest

import specmoe
from specmoe.errors import ArtifactError
from specmoe.profiler.recording_thread import RecordingThread
from specmoe.profiler.routing_recorder import RoutingRecorder

NOTHING: Any = np.zeros(0)


def arrived() -> Any:
    return NOTHING, NOTHING


class SlowRecorder:
    """Records nothing, and not before `go` is set; fails on batches of the name `bad`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.added: list[str] = []

    def add(self, requests: Any, *_: Any) -> None:
        assert self.go.wait(timeout=60)
        if requests == "bad":
            raise ArtifactError("a bad batch")
        self.added.append(requests)


def test_a_batch_is_recorded_while_the_caller_goes_on() -> None:
    recorder: Any = SlowRecorder()
    with RecordingThread(recorder) as recording:
        recording.add("first", arrived, NOTHING)
        assert recorder.added == []
        recorder.go.set()
        recording.add("second", arrived, NOTHING)
        assert recorder.added[:1] == ["first"], "the second was taken while the first was not through"
        recording.wait()
        assert recorder.added == ["first", "second"]


@pytest.mark.parametrize("call", ["add", "wait"])
def test_what_went_wrong_is_raised_by_the_next_call(call: str) -> None:
    recorder: Any = SlowRecorder()
    recorder.go.set()
    with RecordingThread(recorder) as recording:
        recording.add("bad", arrived, NOTHING)
        with pytest.raises(ArtifactError, match="a bad batch"):
            recording.wait() if call == "wait" else recording.add("next", arrived, NOTHING)


def test_a_failure_with_the_last_batch_is_not_lost(tiny_model, jsonl, monkeypatch) -> None:
    def fail(*_: Any) -> None:
        raise ArtifactError("a bad batch")

    monkeypatch.setattr(RoutingRecorder, "add", fail)
    with pytest.raises(ArtifactError, match="a bad batch"):
        specmoe.profile(tiny_model("olmoe").folder, jsonl, max_tokens=10)
