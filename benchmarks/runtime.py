"""What a placement is worth on slow links: four ranks in network namespaces of their own, measured.

    sudo .venv/bin/python benchmarks/runtime.py --demo demo --trace TRACE.npz --fit-trace FIT.npz --work FOLDER

Serves held-out requests on Gloo with the demo's model and with a wider one of random weights that replays TRACE, under
several placements and link speeds, in `dp` and `tp`: (a) equal links, (b) two nodes with a slow link between them,
(c) unequal ranks. Bytes are the interfaces' own counters, and are held against the prediction. Writes `runtime.json`
and `runtime.md` into FOLDER; `publish_runtime.py` takes them from there. Where namespaces are not permitted it says so
and runs unshaped on the loopback. docs/links.md says how it measures, and how DeepSpeed comes in.
"""

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import specmoe
from specmoe.placement.plan import PlacementPlan

SUITE = Path(__file__).parent / "runtime_suite"
sys.path.append(str(SUITE))

# The folder is no package: benchmarks are not installed.
from layouts import Planner, Scenario, scenarios  # noqa: E402
from measuring import Case, Progress, measure  # noqa: E402
from models import ServedModel, Size, demo_model, wide_model  # noqa: E402
from network import MTU  # noqa: E402
from prediction import predict  # noqa: E402
from tables import to_markdown  # noqa: E402
from verdict import best_gains, judge  # noqa: E402

# Each model's links, so that under linear placement they are about two thirds of the time, then nearly four fifths.
DEMO_SCENARIOS = scenarios(rank_mbits=(40, 20), fast_mbit=200, node_mbits=(60, 22))
WIDE_SCENARIOS = scenarios(rank_mbits=(100, 50), fast_mbit=500, node_mbits=(150, 65))
OUTSIDE = {
    "transformers": "transformers, its own expert parallelism",
    "deepspeed": "DeepSpeed's MoE layer",
}


def main() -> None:
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    # So that namespaces are removed and ranks ended then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    start = time.monotonic()
    results: list[dict[str, Any]] = []

    def keep(found: list[dict[str, Any]]) -> None:
        _write(arguments, results + found, time.monotonic() - start)

    for model in _models(arguments):
        planner = Planner(model.fit)
        for scenario in WIDE_SCENARIOS if model.name == "wide" else DEMO_SCENARIOS:
            if scenario.key in arguments.scenarios:
                results += _run(arguments, model, scenario, planner, keep)
                keep([])
    print(to_markdown(results))
    if not all(item["holds"] for item in judge(results)):
        sys.exit("something that must hold does not; it is named above")


def _without_folder(word: str) -> str:
    """A word of the command line as it makes sense on any machine: of a whole path the last part."""
    return Path(word).name if word.startswith("/") else word


def _write(arguments: argparse.Namespace, results: list[dict[str, Any]], seconds: float) -> None:
    record = {
        "command": " ".join(["python", *map(_without_folder, sys.argv)]),
        "seconds": round(seconds),
        "must_hold": judge(results),
        "gains": list(best_gains(results)),
        "results": results,
    }
    (arguments.work / "runtime.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.work / "runtime.md").write_text(to_markdown(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="the folder that make demo filled; without it no demo model")
    parser.add_argument("--trace", type=Path, help="a recorded trace (npz) to replay; without it no wide model")
    parser.add_argument("--fit-trace", type=Path, help="the trace that plans are solved on; never the one replayed")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--outside", type=Path, help="a folder with DeepSpeed, as above")
    parser.add_argument("--scenarios", default="abc")
    parser.add_argument("--attentions", nargs="+", default=["dp", "tp"], choices=["dp", "tp"])
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=17)
    parser.add_argument("--rounds", type=int, default=3, help="at most; the one of median time counts")
    parser.add_argument("--layers", type=int, default=4, help="of the trace, for the wide model")
    parser.add_argument("--hidden-size", type=int, default=2048, help="of the wide model")
    arguments = parser.parse_args()
    if (arguments.trace is None) != (arguments.fit_trace is None):
        parser.error("--trace and --fit-trace go together")
    if arguments.demo is None and arguments.trace is None:
        parser.error("give --demo, or --trace and --fit-trace, or both")
    return arguments


def _models(arguments: argparse.Namespace) -> list[ServedModel]:
    size = Size(requests=arguments.requests, prompt_tokens=arguments.prompt_tokens, new_tokens=arguments.new_tokens)
    models = []
    if arguments.trace is not None:
        traces = arguments.trace, arguments.fit_trace
        models.append(wide_model(*traces, arguments.work, size, arguments.layers, arguments.hidden_size))
    if arguments.demo is not None:
        models.append(demo_model(arguments.demo, arguments.work, size))
    return models


def _run(
    arguments: argparse.Namespace, model: ServedModel, scenario: Scenario, planner: Planner, progress: Progress
) -> list[dict[str, Any]]:
    """Every case of one model on one network, each result with its prediction; `progress` is given them as they come.

    Heads split, which move three times the bytes, and outside baselines are not measured on the slowest links.
    """
    cases, context = [], {}
    every, faster = tuple(range(len(scenario.speeds))), tuple(range(len(scenario.speeds)))[:2]
    # What is told of slower ranks does not depend on the attention.
    for attention in arguments.attentions if scenario.key != "c" else arguments.attentions[:1]:
        for name, plan in planner.plans(scenario, attention).items():
            compiled = _compiled(arguments, model, plan)
            case = Case(
                name=f"{attention}: {name}",
                kind="specmoe",
                checkpoint=compiled,
                attention=attention,
                workload=str(model.workload_file),
                speeds=every if attention == "dp" else faster,
            )
            cases.append(case)
            context[case.name] = {"attention": attention, "placement": name} | _predicted(plan, model, scenario)
    if scenario.key == "a":
        for case in _outside_cases(arguments, model, faster):
            cases.append(case)
            context[case.name] = {"attention": case.attention, "placement": OUTSIDE[case.kind]}

    def whole(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        place = {"model": model.name, "scenario": scenario.key, "title": scenario.title}
        return [result | place | context[result["case"]] for result in found]

    folder = arguments.work / f"run-{model.name}-{scenario.key}"
    return whole(
        measure(scenario, cases, folder, arguments.rounds, arguments.outside, lambda found: progress(whole(found)))
    )


def _outside_cases(arguments: argparse.Namespace, model: ServedModel, speeds: tuple[int, ...]) -> list[Case]:
    wanted = [("transformers", attention) for attention in arguments.attentions]
    if arguments.outside is not None and "dp" in arguments.attentions:
        wanted.append(("deepspeed", "dp"))
    return [
        Case(
            name=f"{attention}: {kind}",
            kind=kind,
            checkpoint=str(model.checkpoint),
            attention=attention,
            workload=str(model.workload_file),
            speeds=speeds,
        )
        for kind, attention in wanted
    ]


def _compiled(arguments: argparse.Namespace, model: ServedModel, plan: PlacementPlan) -> str:
    out = arguments.work / f"{model.name}-{plan.attention}-{plan.method}-{plan.digest[:12]}"
    if not out.exists():
        specmoe.reshard(model.checkpoint, plan, out)
    return str(out)


def _predicted(plan: PlacementPlan, model: ServedModel, scenario: Scenario) -> dict[str, Any]:
    prediction = predict(plan, model.workload, model.wire(MTU), scenario.topology.node_of_rank)
    return {
        "evaluate_copies_per_token": prediction.evaluate_copies,
        "internode_copies_per_token": prediction.internode_copies,
        "predicted_wire_bytes": prediction.wire_bytes,
        "predicted_row_bytes": prediction.rows_bytes,
        "predicted_node_bytes": prediction.node_bytes,
    }


if __name__ == "__main__":
    main()
