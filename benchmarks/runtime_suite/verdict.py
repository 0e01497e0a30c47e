"""What must hold of the results, and what is aimed at: bytes as predicted, output unchanged, so much faster."""

from collections.abc import Iterator, Sequence
from typing import Any

LARGEST_BYTE_ERROR = 0.05
# Of the largest logit: float32 sums in another order, and bfloat16 rounding over a few layers.
LARGEST_LOGIT_ERROR = {"demo": 1e-5, "wide": 0.05}
AIMS = {"specmoe": 1.5, "specmoe, 25 % more slots": 1.8}
TOLD = "specmoe, told of the nodes"
LINEAR, LINEAR_TOLD = "linear", "linear, told of the nodes"

Result = dict[str, Any]


def judge(results: Sequence[Result]) -> list[dict[str, Any]]:
    """[{"what", "holds", "found"}]: one entry for each thing that must hold, over all of specmoe's results."""
    own = [result for result in results if "predicted_wire_bytes" in result]
    shaped = [result for result in own if result["speed"] != "unshaped"]
    verdicts = [_tokens(own), *_logits(own)]
    return [*_bytes(shaped), *verdicts]


def wire_bytes(result: Result) -> int:
    """What all ranks' interfaces sent."""
    return sum(result["wire_bytes_of_rank"])


def gain(result: Result, results: Sequence[Result], baseline: str = LINEAR) -> float | None:
    """Throughput over that of another placement on the same links; None where that was not measured."""
    for other in results:
        if other["placement"] == baseline and _setting(other) == _setting(result):
            return float(result["tokens_per_second"] / other["tokens_per_second"])
    return None


def link_share(result: Result, results: Sequence[Result]) -> float | None:
    """The share of the time that slow links cost: what is left on free ones, taken away."""
    for other in results:
        if other["is_free"] and other["case"] == result["case"] and _place(other) == _place(result):
            return max(0.0, 1.0 - float(other["seconds"] / result["seconds"]))
    return None


def best_gains(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """For every model, network and attention with slow links: the largest gain of each placement that has an aim, with
    and without being told of the nodes, and where it was found."""
    slow = [result for result in results if "seconds" in result and not result["is_free"]]
    for place in sorted({(*_place(result), result["attention"]) for result in slow}):
        for name, aim in AIMS.items():
            names = {name, name.replace("specmoe", TOLD, 1)}
            found = [
                (gain(result, results) or 0.0, result["speed"], result["placement"], gain(result, results, LINEAR_TOLD))
                for result in slow
                if (*_place(result), result["attention"]) == place and result["placement"] in names
            ]
            if found:
                best, speed, placement, over_told = max(found)
                model, scenario, attention = place
                yield {
                    "model": model, "scenario": scenario, "attention": attention, "placement": placement,
                    "speed": speed, "gain": best, "gain_over_linear_told": over_told,
                    "aim": aim, "reached": best >= aim,
                }  # fmt: skip


def _bytes(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    on_the_wire = [wire_bytes(result) / result["predicted_wire_bytes"] - 1 for result in results]
    between_nodes = [
        result["node_wire_bytes"] / result["predicted_node_bytes"] - 1
        for result in results
        # What was recorded before has no such prediction, and on equal links there are no such bytes.
        if result.get("predicted_node_bytes")
    ]
    for where, errors in (("on the wire", on_the_wire), ("between nodes", between_nodes)):
        if errors:
            yield {
                "what": f"bytes {where} are as predicted from the plan, within {LARGEST_BYTE_ERROR:.0%}",
                "holds": all(abs(error) <= LARGEST_BYTE_ERROR for error in errors),
                "found": f"{min(errors):+.1%} to {max(errors):+.1%} over {len(errors)} measurements",
            }


def _tokens(results: Sequence[Result]) -> dict[str, Any]:
    equal = sum(result["equal_tokens"] for result in results)
    compared = sum(result["compared_tokens"] for result in results)
    return {
        "what": "the demo's model generates the unmodified model's tokens",
        "holds": equal == compared,
        "found": f"{equal:,} of {compared:,} tokens",
    }


def _logits(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    for model, largest in LARGEST_LOGIT_ERROR.items():
        errors = [result["logit_error"] for result in results if result["model"] == model]
        if errors:
            yield {
                "what": f"logits of the {model} model are the unmodified model's, within {largest:g} of the largest",
                "holds": max(errors) <= largest,
                "found": f"{max(errors):.1e}",
            }


def _place(result: Result) -> tuple[str, str]:
    return result["model"], result["scenario"]


def _setting(result: Result) -> tuple[str, str, str, str]:
    return (*_place(result), result["attention"], result["speed"])
