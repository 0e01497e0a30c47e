"""Several processes (Gloo) running one model: lossless with any share of the work, and failing together."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import specmoe

SCRIPT = Path(__file__).with_name("many_processes.py")
SPLIT_FAMILIES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss"]
FAMILIES = [*SPLIT_FAMILIES, "llama4", "longcat_flash"]
# One that weighs its experts' inputs, and not their outputs, among them.
RELAYED_FAMILIES = ["deepseek_v3", "llama4"]


@pytest.fixture(scope="module")
def findings(compiled_model, on_eight_ranks, random_plan, tmp_path_factory):
    """What every process of every run reported: `findings[run][process]`, a list of objects."""
    folder = tmp_path_factory.mktemp("runs")
    made = {family: compiled_model(family) for family in FAMILIES}
    altered = folder / "altered"
    shutil.copytree(made["olmoe"].compiled["static"], altered)
    with (altered / "experts-rank-00002-of-00004.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x7f")
    # Other weights, and the very same plan.
    olmoe = made["olmoe"]
    other = folder / "other"
    shutil.copytree(olmoe.source, other)
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    specmoe.reshard(other, olmoe.plans["cover"], folder / "other-compiled")
    specmoe.reshard(olmoe.source, three_ranks_plan(random_plan), folder / "three-ranks")
    settings = {
        "folder": str(folder),
        "models": {
            "four": {family: [str(m.source), str(m.compiled["cover"])] for family, m in made.items()},
            "two": {family: [str(m.source), str(m.compiled["static"])] for family, m in made.items()},
            "tp2": {family: [str(made[family].source), str(made[family].compiled["tp"])] for family in SPLIT_FAMILIES},
            "eight": {name: [str(path) for path in paths] for name, paths in on_eight_ranks.items()},
            "tp4": {f: [str(made[f].source), str(made[f].compiled["tp"])] for f in ("mixtral", "deepseek_v3")},
            "relays4": {f: [str(made[f].source), str(made[f].compiled["relays"])] for f in RELAYED_FAMILIES},
            "tprelays4": {
                "deepseek_v3": [str(made["deepseek_v3"].source), str(made["deepseek_v3"].compiled["tp_relays"])]
            },
        },
        "any": str(made["olmoe"].compiled["cover"]),
        "altered": str(altered),
        "two_plans": [str(olmoe.compiled[choice]) for choice in ("static", "cover")],
        "two_weights": [str(olmoe.compiled["cover"]), str(folder / "other-compiled")],
        "three_ranks": str(folder / "three-ranks"),
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, str(SCRIPT), str(folder / "settings.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    reports = {}
    for path in folder.glob("*-[0-9].json"):
        run, process = path.stem.split("-")
        reports.setdefault(run, {})[int(process)] = json.loads(path.read_text())
    return reports


def three_ranks_plan(random_plan):
    return random_plan(np.random.default_rng(0), num_experts=8, ranks_per_node=(3,), top_k=3, layer_ids=(0, 1, 2))


@pytest.mark.parametrize("name", ["static", "cover", "hot", "tp"])
@pytest.mark.parametrize(("run", "world_size"), [("eight2", 2), ("eight4", 4)])
def test_eight_uneven_ranks_on_fewer_processes_change_nothing(findings, run, world_size, name):
    for process in range(world_size):
        assert "traceback" not in findings[run][process][0], findings[run][process][0]["traceback"]
        (found,) = (item for item in findings[run][process] if item.get("family") == name)
        if found.get("requests", 1):
            assert found["error"] < 3e-6
            assert found["same_tokens"]


RUNS = [(run, world_size, family) for run, world_size in (("two", 2), ("four", 4)) for family in FAMILIES]
RELAYED = [("relays4", 4, family) for family in RELAYED_FAMILIES]
TOLD = [("late4", 4, "deepseek_v3"), ("told4", 4, "deepseek_v3")]


@pytest.mark.parametrize(("run", "world_size", "family"), [*RUNS, *RELAYED, *TOLD])
def test_every_process_gets_the_logits_and_tokens_of_the_unmodified_model(findings, run, world_size, family):
    for process in range(world_size):
        (found,) = (item for item in findings[run][process] if item.get("family") == family)
        if found["requests"]:
            assert found["error"] < 2e-6
            assert found["same_tokens"]
        else:
            assert set(found["tokens"]) == {0}, "a process without requests only serves the others"
            assert found["nothing"] == [0, 1]


@pytest.mark.parametrize("family", RELAYED_FAMILIES)
def test_relays_serve_the_passes_in_which_all_processes_have_many_tokens_together(findings, family):
    for report in findings["relays4"].values():
        (found,) = (item for item in report if item.get("family") == family)
        assert not found["requests"] or found["relayed"] == [True, False], "prompts by relays, single tokens straight"
    assert all(item["relayed"] for report in findings["tprelays4"].values() for item in report if "error" in item)
    assert not any(any(item.get("relayed", [])) for report in findings["four"].values() for item in report)


@pytest.mark.parametrize("run", ["two", "four"])
def test_prompts_are_served_over_all_processes_and_come_back_in_order_everywhere(findings, run):
    first, *others = [report[0] for report in findings[run].values()]
    assert len(first["served"]) == 7
    assert all(other["served"] == first["served"] for other in others)
    assert set(first["served_by"]) == set(findings[run]), "every process had prompts"
    assert findings["two"][0][0]["served"] == findings["four"][0][0]["served"]
    assert all(report[0]["served_in_turn"] == first["served"] for report in findings[run].values())
    assert all(report[0]["none_served"] == [] for report in findings[run].values())


SERVED = [(run, family) for run in ("two", "four") for family in ("mixtral", "gpt_oss")]
SERVED += [("static4", "mixtral"), ("overflow4", "mixtral"), ("eight4", "tp"), ("statictp2", "qwen3_moe")]
SERVED += [("tprelays4", "deepseek_v3"), *(("tp2", family) for family in SPLIT_FAMILIES if family != "olmoe")]


@pytest.mark.parametrize(("run", "family"), SERVED)
def test_prompts_of_different_lengths_are_answered_as_alone_wherever_they_run(findings, run, family):
    found = [next(item for item in report if item.get("family") == family) for report in findings[run].values()]
    assert all(item["served_as_alone"] for item in found)
    assert len(found[0]["ended_after"]) > 1
    by_layer = zip(*(item["read"] for item in found), strict=True)
    assert {sum(read) for read in by_layer} == {found[0]["to_read"]}, "neither padding nor who has ended"


@pytest.mark.parametrize("run", ["two", "four"])
def test_requests_that_arrive_one_by_one_go_where_they_go_together(findings, run):
    for report in findings[run].values():
        assert report[0]["arrived"] == report[0]["assigned"] == findings[run][0][0]["served_by"]


def test_with_one_rank_per_process_every_remote_copy_is_a_row_on_the_wire(findings):
    assert all(item["wire_is_remote"] for report in findings["four"].values() for item in report)


SPLIT = [("tp2", 2, family) for family in SPLIT_FAMILIES if family != "olmoe"]
SPLIT += [("tp4", 4, "deepseek_v3"), ("tprelays4", 4, "deepseek_v3")]


@pytest.mark.parametrize(("run", "world_size", "family"), SPLIT)
def test_split_heads_and_shuffled_tokens_change_nothing(findings, run, world_size, family):
    found = [next(item for item in findings[run][p] if item.get("family") == family) for p in range(world_size)]
    for item in found:
        assert item["error"] < 3e-6
        assert item["same_tokens"]
        assert item["served"] == found[0]["served"]
    shares = [item["tokens"][0] for item in found]
    assert sum(shares) == 21, "every token runs on one process"
    assert max(shares) - min(shares) <= 4 // world_size


@pytest.mark.parametrize(("run", "world_size", "family"), SPLIT)
def test_shuffling_sends_what_the_all_reduce_sent_that_it_replaces(findings, run, world_size, family):
    found = [next(item for item in findings[run][p] if item.get("family") == family) for p in range(world_size)]
    num_layers, num_tokens, hidden_size, float_bytes = 3, 21, 32, 4
    all_reduce = 2 * (world_size - 1) * num_tokens * hidden_size * float_bytes
    assert sum(item["sent_bytes"] for item in found) == num_layers * all_reduce


@pytest.mark.parametrize(("run", "world_size", "family"), SPLIT)
def test_tokens_are_shuffled_by_node_where_the_plan_knows_of_slow_links(findings, run, world_size, family):
    found = [next(item for item in findings[run][p] if item.get("family") == family) for p in range(world_size)]
    assert all(item["shuffled_by_node"] == (run == "tprelays4") for item in found)


UNSPLITTABLE = {
    "a norm across all heads": ("tp2", "olmoe", "normalises across all heads"),
    "too few key-value heads": ("tp4", "mixtral", "2 key-value heads cannot be split over 4 processes"),
}


@pytest.mark.parametrize(("run", "family", "reason"), UNSPLITTABLE.values(), ids=UNSPLITTABLE.keys())
def test_attention_that_cannot_be_split_is_refused_with_the_reason(findings, run, family, reason):
    for report in findings[run].values():
        (found,) = (item for item in report if item.get("family") == family)
        assert reason in found["refused"]


def test_different_batches_under_tp_are_refused_before_anything_is_sent(findings):
    for report in findings["tp2"].values():
        assert "process 1 runs another batch than process 0" in report[-1]["refused"]


@pytest.mark.parametrize("run", ["static4", "static2", "overflow4"])
def test_steps_in_fixed_buffers_change_nothing_whether_these_overflow_or_not(findings, run):
    for process, report in findings[run].items():
        for found in report:
            assert "traceback" not in found, found["traceback"]
            if found["requests"]:
                assert found["error"] < 2e-6
                assert found["same_tokens"]
            assert found["deferred_error"] < 2e-6
            assert found["overflowed"] == (run == "overflow4"), "all processes see the same flag"
            layers_run, fell_back = found["layers"]
            # The prefills, of more than eight tokens on some process, always go the exact way.
            assert fell_back > 0
            assert layers_run > (0 if run == "overflow4" else 2 * fell_back), process
    first, *others = [report[0] for report in findings[run].values()]
    assert all(other["served"] == first["served"] for other in others)


def test_an_unread_step_flags_processes_that_are_out_of_step(findings):
    for (found,) in findings["deferred"].values():
        assert found == {"in_step": False, "flagged": True}


def test_fixed_buffers_serve_split_heads_too(findings):
    fell_back = {}
    for run in ("statictp2", "overflowtp2"):
        for (found,) in findings[run].values():
            assert found["error"] < 3e-6
            assert found["same_tokens"]
            layers_run, fell_back[run] = found["layers"]
            assert layers_run > 0
    assert fell_back["overflowtp2"] > 2 * fell_back["statictp2"]


REFUSALS = {
    "three": (3, "3 processes cannot share the checkpoint's 4 ranks; start 1, 2 or 4"),
    "altered": (4, "experts-rank-00002-of-00004.safetensors was altered since"),
    "plans": (2, "process 1 has plan "),
    "weights": (2, "process 1 has checkpoint "),
    "steps": (2, "every process must run the same number of forward passes"),
    "death": (3, "had to stop in MoE layer 0: process 3 does not answer any more"),
    "serving": (1, "process 0 had to stop in a meeting of all processes: process 1 does not answer any more"),
}


def test_an_unforeseen_exception_of_one_process_is_told_to_the_others_at_once(findings):
    assert findings["defect"][1] == [{"raised": "on this process only"}]
    (found,) = findings["defect"][0]
    assert found["refused"] == "process 1 of 2: ZeroDivisionError: on this process only"


def test_a_process_that_ends_while_the_others_load_is_named(findings):
    for process in (0, 2):
        (found,) = findings["loading"][process]
        # The other one may have stopped for the same reason, and been gone before this one looked.
        assert re.search(r"process(es)? 1 .*do(es)? not answer any more", found["refused"])


def test_a_process_that_hangs_ends_the_others_within_the_timeout_and_is_named(findings):
    for process in (0, 2, 3):
        (found,) = findings["hang"][process]
        assert "process 1 does not answer any more" in found["refused"]


@pytest.mark.parametrize(("run", "world_size", "message"), [(r, *v) for r, v in REFUSALS.items()], ids=REFUSALS.keys())
def test_all_processes_fail_together_with_one_sentence(findings, run, world_size, message):
    for process in range(world_size):
        (found,) = findings[run][process]
        assert "traceback" not in found, found["traceback"]
        assert found["refused"] is not None
        assert message in found["refused"]
