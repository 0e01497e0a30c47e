"""The benchmark's results as Markdown: one table for each model, network and attention, and a short one of gains."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from verdict import best_gains, gain, judge, link_share, wire_bytes

Result = dict[str, Any]

MODELS = {"demo": "the demo's model", "wide": "wide model, recorded routing"}
ATTENTIONS = {"dp": "requests on ranks (`dp`)", "tp": "heads split (`tp`)"}
COLUMNS = (
    "links, Mbit/s",
    "placement",
    "copies per token: evaluate",
    "counted",
    "to other nodes",
    "MB on the wire",
    "over predicted",
    "MB between nodes",
    "first token s",
    "s per decoded token",
    "prefill tokens/s",
    "decode tokens/s",
    "links' share",
    "throughput over linear",
)


def to_markdown(results: Sequence[Result]) -> str:
    """All tables, then what must hold and whether it does."""
    parts = []
    for (model, _, title, attention), group in groupby(sorted(results, key=_table_of), key=_table_of):
        parts += [f"### {MODELS[model]}, {title}, {ATTENTIONS[attention]}", "", *_table(list(group), results), ""]
    parts += ["### What was gained, and what must hold", "", *gains_table(results), ""]
    return "\n".join([*parts, *verdict_lines(results)]) + "\n"


def verdict_lines(results: Sequence[Result]) -> list[str]:
    """What must hold, and whether it does."""
    return [f"- {item['what']}: {'yes' if item['holds'] else 'NO'} ({item['found']})" for item in judge(results)]


def gains_table(results: Sequence[Result]) -> list[str]:
    """The largest gain of each setting on slow links, and what it was found on."""
    gains = list(best_gains(results))
    columns: dict[str, list[str]] = {
        "model, network, attention": [
            f"{MODELS[item['model']]}, ({item['scenario']}), {item['attention']}" for item in gains
        ],
        "placement": [item["placement"] for item in gains],
        "links, Mbit/s": [item["speed"] for item in gains],
        "throughput over linear": [f"{item['gain']:.2f}" for item in gains],
        "over linear that is told of the nodes": [_number(item["gain_over_linear_told"], ".2f") for item in gains],
        "aim": [f"{item['aim']:.1f}" for item in gains],
    }
    # Records of before that placement was measured have nothing to show there.
    shown = {name: column for name, column in columns.items() if any(column)}
    return _markdown(tuple(shown), list(zip(*shown.values(), strict=True)))


def _table(group: Sequence[Result], results: Sequence[Result]) -> list[str]:
    cannot = {result["placement"]: result["cannot_run"] for result in group if "cannot_run" in result}
    ran = [result for result in group if "cannot_run" not in result]
    speeds = list(dict.fromkeys(result["speed"] for result in ran))
    by_speed = sorted(ran, key=lambda result: speeds.index(result["speed"]))
    notes = [f"{placement} cannot run here: {reason}" for placement, reason in cannot.items()]
    return [*_markdown(COLUMNS, [_row(result, results) for result in by_speed]), *(("", *notes) if notes else ())]


def _row(result: Result, results: Sequence[Result]) -> tuple[str, ...]:
    # The loopback counts what all ranks send together.
    measured = None if result["speed"] == "unshaped" else wire_bytes(result)
    predicted = result.get("predicted_wire_bytes")
    share, over_linear = link_share(result, results), gain(result, results)
    return (
        result["speed"],
        result["placement"],
        _number(result.get("evaluate_copies_per_token"), ".3f"),
        _number(result.get("remote_copies_per_token"), ".3f"),
        _number(result.get("internode_copies_per_token") or None, ".3f"),
        "" if measured is None else f"{measured / 1e6:.1f}",
        "" if measured is None or predicted is None else f"{measured / predicted - 1:+.1%}",
        _number(result["node_wire_bytes"] / 1e6 or None, ".1f"),
        f"{result['first_token_seconds']:.2f}",
        f"{result['seconds_per_decoded_token']:.3f}",
        f"{result['prefill_tokens_per_second']:.0f}",
        f"{result['decode_tokens_per_second']:.0f}",
        _number(None if result["is_free"] else share, ".0%"),
        _number(over_linear, ".2f"),
    )


def _table_of(result: Result) -> tuple[str, str, str, str]:
    return result["model"], result["scenario"], result["title"], result["attention"]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
