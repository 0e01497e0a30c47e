"""A run that is stopped leaves a valid part and a state; one that goes on ends with what an unbroken run gives."""

import json
from pathlib import Path
from typing import Any

import pytest

from specmoe.errors import MismatchError, OutputError, SpecmoeError, UsageError
from specmoe.profiler import run_profile as module
from specmoe.profiler.output_file import OutputFile
from specmoe.profiler.prepared_run import prepare_run
from specmoe.profiler.processes import Processes
from specmoe.profiler.profile_options import ProfileOptions
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.profiler.run_profile import ProfileRun, claim_output, run_profile

OPTIONS: dict[str, Any] = {"batch_tokens": 64, "sample_tokens": 150, "max_length": 30}


@pytest.fixture
def profiling(tiny_model, jsonl, tmp_path):
    """`profiling(batches=3, resume=True, seed=1)`: a run for `tmp_path / "p"` that is stopped after three batches."""

    def run(
        batches: int | None = None, *, data: Path = jsonl, output: dict[str, Any] | None = None, **options: Any
    ) -> ProfileRun:
        asked: list[None] = []

        def should_stop() -> bool:
            asked.append(None)
            return batches is not None and len(asked) > batches

        file = OutputFile(path=tmp_path / "p", **output or {})
        claim_output(file, Processes())
        prepared = prepare_run(tiny_model("olmoe").folder, [data], ProfileOptions(**OPTIONS | options), Processes())
        return run_profile(prepared, Processes(), output=file, should_stop=should_stop)

    return run


def test_a_run_that_goes_on_ends_as_an_unbroken_one(profiling, tmp_path) -> None:
    whole = profiling(generate=2).profile
    (tmp_path / "p").rename(tmp_path / "whole")
    profiling(2, generate=2)
    profiling(1, generate=2, output={"resume": True})
    assert (tmp_path / "p.state").exists()
    profiling(generate=2, output={"resume": True})
    assert (tmp_path / "p").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not (tmp_path / "p.state").exists()
    assert whole.seen_share is None


def test_a_run_that_goes_on_does_not_repeat_what_is_done(profiling, monkeypatch) -> None:
    from specmoe.profiler import record_share

    sizes: list[int] = []
    record = record_share.record_batch

    def counting(routing: Any, rows: Any, *rest: Any) -> None:
        sizes.append(len(rows))
        record(routing, rows, *rest)

    monkeypatch.setattr(record_share, "record_batch", counting)
    profiling()
    whole = [*sizes]
    sizes.clear()
    profiling(3, output={"force": True})
    profiling(output={"resume": True})
    assert sizes == whole
    assert len(whole) > 5


def test_a_part_is_a_valid_profile_that_says_how_much_it_saw(profiling, tmp_path) -> None:
    whole = profiling().profile
    run = profiling(3, output={"force": True})
    part = RoutingProfile.load(tmp_path / "p")
    assert part.fingerprint == run.profile.fingerprint
    assert 0 < part.num_tokens < whole.num_tokens
    assert part.seen_share == pytest.approx(part.num_tokens / whole.num_tokens, abs=0.02)
    assert part.expert_counts.sum() == part.num_tokens * 3 * 3


def test_nothing_seen_is_nothing_written(profiling, tmp_path) -> None:
    with pytest.raises(SpecmoeError, match="interrupted before the first batch"):
        profiling(0)
    assert not (tmp_path / "p").exists()


def test_a_state_is_kept_as_often_as_asked(profiling, tmp_path, monkeypatch) -> None:
    kept: list[bool] = []
    from specmoe.profiler import record_share

    run_and_record = record_share._run_and_record

    def looking(*arguments: Any) -> None:
        kept.append((tmp_path / "p.state").exists())
        run_and_record(*arguments)

    monkeypatch.setattr(record_share, "_run_and_record", looking)
    profiling(output={"checkpoint_minutes": 0})
    assert kept == [True] * 12
    kept.clear()
    profiling(output={"force": True, "checkpoint_minutes": 10_000})
    assert not any(kept)


def test_a_killed_run_goes_on_from_its_last_state(profiling, tmp_path, monkeypatch) -> None:
    profiling()
    (tmp_path / "p").rename(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_merged", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            profiling(output={"checkpoint_minutes": 0})
    assert not (tmp_path / "p").exists()
    profiling(output={"resume": True})
    assert (tmp_path / "p").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 5}, "seed"),
        ({"batch_tokens": 128}, "batch_tokens"),
        ({"max_length": 20}, "max_length"),
        ({"max_tokens": 300}, "max_tokens"),
        ({"sample_tokens": 100}, "sample_tokens"),
        ({"generate": 3}, "generate"),
        ({"weights": [1.0]}, "weights"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"domain_column": "kind"}, "data"),
    ],
)
def test_a_state_of_another_job_is_refused(changes, name, profiling, tmp_path) -> None:
    texts = tmp_path / "kinds.jsonl"
    texts.write_text("".join(json.dumps({"text": "abc " * 20, "kind": kind}) + "\n" for kind in "xyxy"))
    profiling(1, data=texts)
    before = (tmp_path / "p.state").read_bytes()
    with pytest.raises(MismatchError, match=f"p.state was made with another {name} "):
        profiling(data=texts, output={"resume": True}, **changes)
    assert (tmp_path / "p.state").read_bytes() == before


def test_a_state_of_other_data_or_another_model_is_refused(profiling, tiny_model, tmp_path) -> None:
    profiling(1)
    (tmp_path / "other.jsonl").write_text('{"text": "something else"}\n')
    with pytest.raises(MismatchError, match="made with another data"):
        profiling(data=tmp_path / "other.jsonl", output={"resume": True})
    other = prepare_run(
        tiny_model("mixtral").folder, [tmp_path / "texts.jsonl"], ProfileOptions(**OPTIONS), Processes()
    )
    with pytest.raises(MismatchError, match="made with another model"):
        run_profile(other, Processes(), output=OutputFile(path=tmp_path / "p", resume=True))


def test_an_unfinished_run_is_not_forgotten_unasked(profiling, tmp_path) -> None:
    profiling(1)
    (tmp_path / "p").unlink()
    with pytest.raises(OutputError, match=r"p\.state is left of a run that did not finish; give --resume"):
        profiling()
    (tmp_path / "p.state").rename(tmp_path / "p.state-1-of-4")
    with pytest.raises(OutputError, match="left by a run of another number of processes"):
        profiling(output={"resume": True})
    profiling(output={"force": True})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "texts.jsonl"]


def test_a_whole_profile_is_not_replaced_by_going_on(profiling) -> None:
    profiling()
    with pytest.raises(OutputError, match="exists already"):
        profiling(output={"resume": True})


def test_states_of_other_outputs_are_left_alone(tmp_path) -> None:
    names = ["p.state", "p.state-0-of-2", "p.statement", "pp.state", "p.state.partial-77", "p.state-x-of-2"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in OutputFile(path=tmp_path / "p").left_states()] == names[:2]


def test_a_negative_interval_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="checkpoint_minutes is -1"):
        OutputFile(path=tmp_path / "p", checkpoint_minutes=-1)


def test_a_device_map_is_for_one_process(tiny_model, jsonl) -> None:
    with pytest.raises(UsageError, match="start one process"):
        prepare_run(tiny_model("olmoe").folder, [jsonl], ProfileOptions(device_map="auto"), Processes(count=2))
