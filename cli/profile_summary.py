"""What a new profile holds, as a JSON object or a short table."""

from pathlib import Path
from typing import Any

import numpy as np

from specmoe.profiler.routing_profile import RoutingProfile

MOST_DOMAINS = 6


def summary(
    profile: RoutingProfile, output: Path, seconds: float, *, run_seconds: float | None = None, num_processes: int = 1
) -> dict[str, Any]:
    """The profile in numbers; `hottest_expert` and `busiest_tenth` are means over layers.

    seconds: of all the work. run_seconds: of what the rate in tokens per second is of, where that is less: reading the
    corpus and running the model, without loading it.

    hottest_expert: the most used expert's load over the mean. busiest_tenth: the share of the (token, expert) pairs
    that the most used tenth of the experts (at least one) takes.
    """
    loads = np.sort(profile.expert_counts / profile.expert_counts.sum(axis=1, keepdims=True), axis=1)[:, ::-1]
    tenth = max(1, profile.num_logical_experts // 10)
    sample = profile.sample
    return {
        "output": str(output),
        "tokens": profile.num_tokens,
        "requests_in_sample": _num_requests(profile),
        "tokens_in_sample": 0 if sample is None else sample.num_tokens,
        "too_long_requests": profile.too_long_requests,
        "decode_tokens": None if profile.decode is None else profile.decode.num_tokens,
        "domains": _tokens_by_domain(profile),
        "seen_share": profile.seen_share,
        "layers": profile.num_layers,
        "experts": profile.num_logical_experts,
        "top_k": profile.top_k,
        "vocab_size": profile.vocab_size,
        "has_trace": sample is not None,
        "hottest_expert": round(float(loads[:, 0].mean() * profile.num_logical_experts), 4),
        "busiest_tenth": round(float(loads[:, :tenth].sum(axis=1).mean()), 4),
        "seconds": round(seconds, 3),
        "run_seconds": round(run_seconds or seconds, 3),
        "processes": num_processes,
        "tokens_per_second": round(profile.num_tokens / max(run_seconds or seconds, 1e-9), 1),
        "model_fingerprint": profile.model_fingerprint,
        "profile_fingerprint": profile.fingerprint,
    }


def print_summary(numbers: dict[str, Any]) -> None:
    """The table for people, on stdout."""
    from rich.table import Table

    from specmoe.cli.terminal import console

    table = Table(show_header=False, title=f"wrote {numbers['output']}", title_justify="left")
    if numbers["seen_share"] is not None:
        table.add_row(
            "stopped", f"at about {100 * numbers['seen_share']:.0f} % of the corpus; --resume goes on from here"
        )
    decode = "" if numbers["decode_tokens"] is None else f", {numbers['decode_tokens']:,} of them generated"
    table.add_row("tokens", f"{numbers['tokens']:,}{decode} ({numbers['tokens_per_second']:,.0f} a second)")
    if len(numbers["domains"]) > 1:
        table.add_row("domains", _largest_domains(numbers["domains"]))
    table.add_row("routing", f"{numbers['layers']} MoE layers, {numbers['experts']} experts, top-{numbers['top_k']}")
    if numbers["has_trace"]:
        requests = "" if numbers["requests_in_sample"] is None else f" of {numbers['requests_in_sample']:,} requests"
        table.add_row("sample", f"{numbers['tokens_in_sample']:,} tokens{requests}")
        if numbers["too_long_requests"]:
            left_out = f"{numbers['too_long_requests']:,} requests, each longer than the sample; raise --sample-tokens"
            table.add_row("left out", left_out)
    else:
        table.add_row("sample", "none: the source has counts alone, which solves for load and not for traffic")
    table.add_row("hottest expert", f"{numbers['hottest_expert']:.2f} times the mean load (mean over layers)")
    table.add_row("busiest tenth", f"of the experts takes {100 * numbers['busiest_tenth']:.1f} % of the work")
    console().print(table)


def _tokens_by_domain(profile: RoutingProfile) -> dict[str, int]:
    if profile.domains is None:
        return {}
    return dict(zip(profile.domains.names, profile.domains.num_tokens.tolist(), strict=True))


def _largest_domains(domains: dict[str, int]) -> str:
    ordered = sorted(domains.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name}: {tokens:,}" for name, tokens in ordered[:MOST_DOMAINS])
    return shown + (f" tokens, and {len(ordered) - MOST_DOMAINS} more" if len(ordered) > MOST_DOMAINS else " tokens")


def _num_requests(profile: RoutingProfile) -> int | None:
    if profile.sample is None or profile.sample.request_ids is None:
        return None
    return len(np.unique(profile.sample.request_ids))
