"""Run by `test_many_processes`: fork processes that load compiled checkpoints together and report what they saw.

Arguments: a JSON file {"folder", "models": {family: [source, compiled]}, "uneven": [source, compiled], ...}. Every
process of a run writes `FOLDER/RUN-PROCESS.json`, a list of findings, each an object.
"""

import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers

import specmoe
import specmoe.runtime.exchange
import specmoe.runtime.few_rows
import specmoe.runtime.load
import specmoe.runtime.serve
from specmoe.errors import SpecmoeError
from specmoe.runtime.packing import row_bytes
from specmoe.runtime.serve import serve_prompts
from specmoe.runtime.static_decode import StaticDecode

GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
TIMEOUTS = {"hang": timedelta(seconds=4)}
# Requests of each process: how many, how long, and how many new tokens. One process has none.
WORK = [(2, 5, 4), (1, 8, 9), (0, 1, 0), (2, 7, 6)]


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    # Import every model class once, here, and not in each of the forked processes.
    for source, _ in settings["models"]["four"].values():
        _ = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(transformers.AutoConfig.from_pretrained(source))]
    runs: dict[str, tuple[int, Callable[..., list[dict[str, Any]]]]] = {
        "four": (4, check_models),
        "late4": (4, check_late_rows),
        "told4": (4, check_told_before),
        "two": (2, check_models),
        "eight2": (2, check_eight_ranks),
        "eight4": (4, check_eight_ranks),
        "tp2": (2, check_tp),
        "tp4": (4, check_tp),
        "relays4": (4, check_models),
        "tprelays4": (4, check_tp),
        "static4": (4, check_static),
        "static2": (2, check_static),
        "overflow4": (4, check_static),
        "statictp2": (2, check_static_tp),
        "overflowtp2": (2, check_static_tp),
        "three": (3, check_wrong_world_size),
        "altered": (4, check_altered_file),
        "plans": (2, check_different_plans),
        "weights": (2, check_different_weights),
        "defect": (2, check_defect),
        "steps": (2, check_out_of_step),
        "deferred": (2, check_out_of_step_unread),
        "death": (4, check_death),
        "loading": (3, check_death_while_loading),
        "serving": (2, check_death_while_serving),
        "hang": (4, check_hang),
    }
    for name, (world_size, check) in runs.items():
        context = multiprocessing.get_context("fork")
        arguments = [(name, process, world_size, check, settings) for process in range(world_size)]
        children = [context.Process(target=run, args=args) for args in arguments]
        for child in children:
            child.start()
        for child in children:
            child.join()


def run(name: str, process: int, world_size: int, check: Callable[..., Any], settings: dict[str, Any]) -> None:
    folder = Path(settings["folder"])
    store = dist.FileStore(str(folder / f"{name}-store"), world_size)
    dist.init_process_group(
        "gloo", store=store, rank=process, world_size=world_size, timeout=TIMEOUTS.get(name, timedelta(seconds=60))
    )
    try:
        findings = check(name, process, settings)
    except BaseException:  # noqa: BLE001 (whatever it is, the parent must see it)
        findings = [{"traceback": traceback.format_exc()}]
    (folder / f"{name}-{process}.json").write_text(json.dumps(findings))
    # Without the clean-up of the group, which may be broken on purpose.
    os._exit(0)


# Between what all processes' prompts have together and what their decode steps have: both ways are tried.
RELAYED_TOKENS = 16
# Of one hidden state of a tiny model.
STATE_BYTES = 32 * 4


def check_models(name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    return [compare(family, *paths, process) for family, paths in settings["models"][name].items()]


def check_late_rows(_name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Up to three rows come with their number: those of decode steps, and not those of prompts."""
    specmoe.runtime.few_rows.MOST_BYTES = 3 * row_bytes(32, 3, torch.float32)
    return [compare("deepseek_v3", *settings["models"]["four"]["deepseek_v3"], process)]


def check_told_before(_name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """As on backends that want the lengths of messages told before."""
    specmoe.runtime.exchange.can_send_few_rows = lambda _workers: False
    return [compare("deepseek_v3", *settings["models"]["four"]["deepseek_v3"], process)]


def relaying(model: Any) -> Any:
    """The model, which goes by relays and by node in passes of few tokens already."""
    if model.specmoe.relays is not None:
        model.specmoe.relays.fewest_tokens = RELAYED_TOKENS
    if model.specmoe.shuffle is not None:
        model.specmoe.shuffle.fewest_bytes = RELAYED_TOKENS * STATE_BYTES
    return model


def is_relayed(model: Any) -> bool:
    return model.specmoe.relays is not None and model.specmoe.relays.in_use


def compare(
    family: str, source: str, compiled: str, process: int, decode: StaticDecode | None = None
) -> dict[str, Any]:
    """Each process its own requests, of other number and length than the others', beside the unmodified model."""
    model = relaying(specmoe.load(compiled, decode=decode))
    original = transformers.AutoModelForCausalLM.from_pretrained(source, experts_implementation="eager")
    requests, length, new_tokens = WORK[process]
    tokens = torch.randint(3, 96, (requests, length), generator=torch.Generator().manual_seed(process))
    finding: dict[str, Any] = {"family": family, "requests": requests}
    with torch.no_grad(), model.specmoe.lock_step():
        if requests:
            expected = original(tokens).logits
            finding["error"] = float((model(tokens).logits - expected).abs().max() / expected.abs().max())
            finding["relayed"] = [is_relayed(model)]
            model(tokens[:, :1])
            finding["relayed"].append(is_relayed(model))
    if requests:
        expected = original.generate(tokens, max_new_tokens=new_tokens, **GREEDY)
        finding["same_tokens"] = torch.equal(model.generate(tokens, max_new_tokens=new_tokens, **GREEDY), expected)
    else:
        # Nothing of its own to do, until the others have nothing to do either.
        finding["nothing"] = list(model.generate(tokens, max_new_tokens=9, **GREEDY).shape)
    finding["tokens"] = [layer.tokens for layer in model.specmoe.counters()]
    finding["wire_is_remote"] = all(c.wire_rows == c.remote_copies for c in model.specmoe.counters())
    if model.specmoe.static is not None:
        finding["layers"] = [model.specmoe.static.layers_run, model.specmoe.static.layers_fell_back]
        finding |= compare_deferred(model, original)
    if family in ("mixtral", "gpt_oss"):
        finding |= serve_beside(model, original)
    if family != "mixtral":
        return finding
    prompts = [[3 + n, 50, 4 + n][: 1 + n % 3] for n in range(7)]
    finding["served"] = [done.token_ids for done in serve_prompts(model, prompts, 3)]
    finding["served_in_turn"] = [done.token_ids for done in serve_prompts(model, prompts, 3, max_batch=1)]
    finding["none_served"] = serve_prompts(model, [], 3)
    finding["arrived"] = [model.specmoe.assign_request(prompt) for prompt in prompts]
    finding["assigned"] = model.specmoe.assign_requests(prompts)
    finding["served_by"] = [done.process for done in serve_prompts(model, prompts, 1)]
    return finding


# So many that answers end after one token, and after some, and not at all.
ENDS = list(range(3, 16))


def serve_beside(model: Any, original: Any) -> dict[str, Any]:
    """Prompts of different lengths that end at different steps, beside the unmodified model's for each alone."""
    generator = torch.Generator().manual_seed(4)
    prompts = [torch.randint(16, 96, (n,), generator=generator).tolist() for n in (3, 60, 1, 17, 6, 1, 30, 9)]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        greedy = GREEDY | {"eos_token_id": ENDS, "max_new_tokens": 6}
        expected.append(
            original.generate(ids, attention_mask=torch.ones_like(ids), **greedy)[0, len(prompt) :].tolist()
        )
    eos, model.generation_config.eos_token_id = model.generation_config.eos_token_id, ENDS
    model.specmoe.reset_counters()
    served = serve_prompts(model, prompts, 6, max_batch=2)
    read = [layer.tokens for layer in model.specmoe.counters()]
    # All but one process have nothing to do of their own, under dp.
    (one,) = serve_prompts(model, prompts[1:2], 6)
    model.generation_config.eos_token_id = eos
    return {
        "served_as_alone": [done.token_ids for done in served] == expected and one.token_ids == expected[1],
        "ended_after": sorted({len(token_ids) for token_ids in expected}),
        "read": read,
        "to_read": sum(len(prompt) + len(new) - 1 for prompt, new in zip(prompts, expected, strict=True)),
    }


def check_eight_ranks(_name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Two or four ranks in each process, under `dp` and under `tp`."""
    eight = settings["models"]["eight"]
    findings = [compare(name, *eight[name], process) for name in ("static", "cover", "hot")]
    source, compiled = eight["tp"]
    found: dict[str, Any] = {"family": "tp"}
    model = specmoe.load(compiled)
    found |= serve_beside(model, compare_tp(found, model, source))
    return [*findings, found]


def compare_deferred(model: Any, original: Any) -> dict[str, Any]:
    """A step of all processes in which nothing is read on the host, and the same again where its flag says so."""
    tokens = torch.randint(3, 96, (2, 3), generator=torch.Generator().manual_seed(5 + torch.distributed.get_rank()))
    with torch.no_grad():
        with model.specmoe.static.deferring_overflow() as flag:
            logits = model(tokens).logits
        overflowed = bool(flag)
        if overflowed:
            logits = model(tokens).logits
        expected = original(tokens).logits
    error = float((logits - expected).abs().max() / expected.abs().max())
    return {"overflowed": overflowed, "deferred_error": error}


def check_static(name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Steps of up to eight tokens in fixed buffers, which one row fills in a run that is to overflow."""
    decode = StaticDecode(max_tokens=8, rows_per_peer=1 if name == "overflow4" else None)
    models = settings["models"]["four"]
    return [compare(family, *models[family], process, decode) for family in ("mixtral", "llama4")]


def check_static_tp(name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    source, compiled = settings["models"]["tp2"]["qwen3_moe"]
    decode = StaticDecode(max_tokens=8, rows_per_peer=1 if name == "overflowtp2" else None)
    model, finding = specmoe.load(compiled, decode=decode), {"family": "qwen3_moe"}
    original = compare_tp(finding, model, source)
    finding["layers"] = [model.specmoe.static.layers_run, model.specmoe.static.layers_fell_back]
    return [finding | serve_beside(model, original)]


def check_tp(name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """All processes run the same batch; at last each another one."""
    findings = []
    for family, paths in settings["models"][name].items():
        finding: dict[str, Any] = {"family": family}
        findings.append(finding)
        try:
            model = relaying(specmoe.load(paths[1]))
        except SpecmoeError as error:
            finding["refused"] = str(error)
            continue
        finding |= serve_beside(model, compare_tp(finding, model, paths[0]))
    findings += refusal(lambda: model(torch.tensor([[5, 6 + process]])))
    return findings


def compare_tp(finding: dict[str, Any], model: Any, source: str) -> Any:
    """The unmodified model, beside which `model` gave what is found."""
    original = transformers.AutoModelForCausalLM.from_pretrained(source, experts_implementation="eager")
    # Not a multiple of the ranks, repeated ids, and a step of fewer tokens than ranks.
    tokens = torch.randint(3, 96, (3, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = original(tokens).logits
        finding["error"] = float((model(tokens).logits - expected).abs().max() / expected.abs().max())
        finding["relayed"] = is_relayed(model)
    finding["shuffled_by_node"] = model.specmoe.shuffle.is_by_node(tokens.numel() * STATE_BYTES)
    finding["tokens"] = [layer.tokens for layer in model.specmoe.counters()]
    finding["sent_bytes"] = model.specmoe.shuffle.sent_bytes
    for batch in (tokens, tokens[:1]):
        expected = original.generate(batch, max_new_tokens=6, **GREEDY)
        same = torch.equal(model.generate(batch, max_new_tokens=6, **GREEDY), expected)
        finding["same_tokens"] = finding.get("same_tokens", True) and same
    finding["served"] = [done.token_ids for done in serve_prompts(model, [[4], [5, 6]], 3)]
    return original


def refusal(action: Callable[[], Any]) -> list[dict[str, Any]]:
    try:
        action()
    except SpecmoeError as error:
        return [{"refused": str(error), "kind": type(error).__name__}]
    return [{"refused": None}]


def check_wrong_world_size(_name: str, _process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    return refusal(lambda: specmoe.load(settings["any"]))


def check_altered_file(_name: str, _process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    return refusal(lambda: specmoe.load(settings["altered"]))


def check_different_plans(_name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    return refusal(lambda: specmoe.load(settings["two_plans"][process]))


def check_different_weights(_name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    return refusal(lambda: specmoe.load(settings["two_weights"][process]))


def check_defect(_name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What no one foresaw goes wrong on process 1."""
    if process == 0:
        return refusal(lambda: specmoe.load(settings["any"]))

    def broken(*_arguments: Any) -> None:
        raise ZeroDivisionError("on this process only")

    specmoe.runtime.load.build_model = broken
    try:
        specmoe.load(settings["any"])
    except ZeroDivisionError as error:
        return [{"raised": str(error)}]
    return [{"raised": None}]


def check_out_of_step(_name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    model = specmoe.load(settings["any"])
    layer = model.specmoe.layers[process]
    return refusal(lambda: layer.take_part(torch.float32, 32, 3))


def check_out_of_step_unread(_name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The processes run different layers in a step whose headers no host reads."""
    model = specmoe.load(settings["any"], decode=StaticDecode(max_tokens=4))
    hidden, index = torch.ones(2, 32), torch.tensor([[0, 1, 2], [3, 4, 5]])
    with torch.no_grad(), model.specmoe.static.deferring_overflow() as flag:
        model.specmoe.layers[0].forward(hidden, index, torch.ones(2, 3))
        in_step = bool(flag)
        model.specmoe.layers[1 + process].forward(hidden, index, torch.ones(2, 3))
    return [{"in_step": in_step, "flagged": bool(flag)}]


def check_death(_name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    model = specmoe.load(settings["any"])
    if process == 3:
        os._exit(1)
    return refusal(lambda: model(torch.tensor([[5, 6]])))


def check_death_while_loading(_name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    if process == 1:
        os._exit(1)
    return refusal(lambda: specmoe.load(settings["three_ranks"]))


def check_death_while_serving(_name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Process 1 ends after its last token, before the completions are brought together."""
    model = specmoe.load(settings["any"])
    if process == 1:
        specmoe.runtime.serve.gather = lambda _value: os._exit(1)
    return refusal(lambda: serve_prompts(model, [[5, 6], [7, 8]], 2))


def check_hang(_name: str, process: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    model = specmoe.load(settings["any"])
    if process == 1:
        time.sleep(9)
        return []
    return refusal(lambda: model(torch.tensor([[5, 6]])))


if __name__ == "__main__":
    main()
