"""From a record of routing to a plan and a page that shows what it gains, in Python: no model and no GPU are needed.

    python examples/python_api/place_experts.py trace.npz --ep-size 4 --output placement/

trace.npz holds `expert_ids` [tokens, layers, top_k], `num_experts`, and `request_ids`, without which there is nothing
to hold out; `token_ids` let requests find the rank that has their experts. To record your own model in place of it:

    profile = specmoe.profile("Qwen/Qwen3-30B-A3B", ["chat.jsonl"])
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import specmoe
from specmoe.errors import SpecmoeError, UsageError

HELD_OUT = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--ep-size", type=int, default=4, help="how many ranks (GPUs) the experts are spread over")
    parser.add_argument("--extra-slots", type=int, default=0, help="replica slots a rank")
    parser.add_argument("--max-imbalance", type=float, default=1.05, help="heaviest rank's load over the mean")
    parser.add_argument("--output", type=Path, default=Path("placement"), help="a folder that is not there yet")
    options = parser.parse_args()
    try:
        place(options)
    except FileExistsError:
        sys.exit(f"{options.output} is there already; name another --output")
    except (SpecmoeError, OSError) as error:
        sys.exit(str(error))


def place(options: argparse.Namespace) -> None:
    """Import the trace, solve on some of its requests, judge on the others, and write everything down."""
    fit_trace, heldout_trace = split(options.trace, options.output)
    fit = specmoe.import_record(fit_trace, "npz")
    heldout = specmoe.import_record(heldout_trace, "npz")

    plan = specmoe.solve(
        fit, options.ep_size, extra_slots=options.extra_slots, max_imbalance=options.max_imbalance, best_effort=True
    )
    print(f"on the requests that it was solved from: {plan.objective:.3f} remote copies per token")

    evaluation = specmoe.evaluate({"the plan": plan}, heldout)
    print("on the others, remote copies per token (load imbalance):")
    for result in evaluation.results:
        print(f"  {result.name:<12} {result.mean.remote_copies_per_token:.3f} ({result.mean.load_imbalance:.3f})")

    heldout.save(options.output / "heldout.profile")
    plan.save(options.output / "experts.plan")
    page = options.output / "report.html"
    report = specmoe.report(options.output / "experts.plan", options.output / "heldout.profile", page)
    print(report.headline)
    print(f"look at {report.page}")


def split(trace: Path, folder: Path) -> tuple[Path, Path]:
    """The trace in two files in `folder`, whole requests each: one to solve from, and HELD_OUT of them to judge on."""
    try:
        with np.load(trace, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{trace} cannot be read as an npz trace: {error}") from error
    if "request_ids" not in arrays:
        raise UsageError(f"{trace} has no request_ids, so no requests can be held out")
    folder.mkdir()
    requests = np.unique(arrays["request_ids"])
    held_out = np.random.default_rng(0).permutation(requests)[: round(HELD_OUT * len(requests))]
    is_held_out = np.isin(arrays["request_ids"], held_out)
    paths = folder / "fit.npz", folder / "heldout.npz"
    for path, chosen in zip(paths, (~is_held_out, is_held_out), strict=True):
        per_token = {name for name, array in arrays.items() if array.shape[:1] == chosen.shape}
        np.savez(path, **{name: array[chosen] if name in per_token else array for name, array in arrays.items()})
    return paths


if __name__ == "__main__":
    main()
