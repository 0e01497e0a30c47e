"""A routing profile from its header and its domains' sizes: how much was seen, and what can be done with it."""

from collections.abc import Iterator, Mapping
from typing import Any

from specmoe.cli.inspection.inspection import FileHeader, Inspection, counted
from specmoe.errors import ArtifactError
from specmoe.fields import entry, optional_entry

DOMAIN_TOKENS = "domains.num_tokens"
MOST_DOMAINS = 20
PER_TOKEN = ("token_ids", "request_ids", "positions", "domain_ids", "phases", "gate_weights")


def inspect_profile(header: FileHeader) -> Inspection:
    """Facts and lines of the profile file `header`."""
    facts = _facts(header)
    return Inspection(
        path=header.path,
        kind="routing profile",
        format=str(header.description["format"]),
        num_bytes=header.num_bytes,
        facts=facts,
        lines=list(_lines(facts)),
    )


def _facts(header: FileHeader) -> dict[str, Any]:
    shape = header.shape("expert_counts")
    if shape is None or len(shape) != 2:
        raise ArtifactError("tensor expert_counts is missing or has not two dimensions")
    sample = header.shape("sample.expert_ids")
    return {
        "num_layers": shape[0],
        "num_logical_experts": shape[1],
        "top_k": entry(header.description, "top_k", int),
        "num_tokens": entry(header.description, "num_tokens", int),
        "num_sample_tokens": 0 if not sample else sample[0],
        "sample_has": [name for name in PER_TOKEN if f"sample.{name}" in header.tensors],
        "has_coactivation_counts": "coactivation_counts" in header.tensors,
        "vocab_size": optional_entry(header.description, "vocab_size", int),
        "num_expert_groups": optional_entry(header.description, "num_expert_groups", int),
        "num_decode_tokens": optional_entry(header.description, "num_decode_tokens", int),
        "domains": _domains(header),
        "seen_share": optional_entry(header.description, "seen_share", float),
        "too_long_requests": optional_entry(header.description, "too_long_requests", int) or 0,
        "source": entry(header.description, "source", str),
        "model_fingerprint": optional_entry(header.description, "model_fingerprint", str),
    }


def _lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    experts = counted(facts["num_logical_experts"], "expert")
    groups = facts["num_expert_groups"] or 1
    grouped = f" in {groups:,} groups" if groups > 1 else ""
    yield "model", f"{counted(facts['num_layers'], 'MoE layer')}, {experts}{grouped}, top-{facts['top_k']}"
    yield "seen", _seen(facts)
    if facts["domains"]:
        yield "domains", _listed(facts["domains"])
    if facts["num_sample_tokens"]:
        yield "sample", f"{counted(facts['num_sample_tokens'], 'token')}, expert by expert: plans can be judged on it"
        if facts["too_long_requests"]:
            yield "left out of it", f"{counted(facts['too_long_requests'], 'request')} longer than all of the sample"
        yield "known of each", ", ".join(facts["sample_has"]) or "nothing but its experts"
    else:
        yield "sample", "none, counts alone: good for evening out the load, not for traffic"
    yield "co-activation", "counted" if facts["has_coactivation_counts"] else "not counted"
    yield "vocabulary", "unknown" if facts["vocab_size"] is None else counted(facts["vocab_size"], "token id")
    yield "source", facts["source"] or "not named"
    yield "of the model", facts["model_fingerprint"] or "not named"


def _domains(header: FileHeader) -> dict[str, int]:
    """Each domain's tokens, by its name."""
    names = optional_entry(header.description, "domains", list) or []
    if not names:
        return {}
    num_tokens = header.small_int64(DOMAIN_TOKENS)
    if len(num_tokens) != len(names):
        raise ArtifactError(f"tensor {DOMAIN_TOKENS} has {len(num_tokens)} entries for {len(names)} domains")
    return dict(zip(map(str, names), num_tokens, strict=True))


def _listed(domains: Mapping[str, int]) -> str:
    """The largest first, as many as a person reads."""
    ordered = sorted(domains.items(), key=lambda item: -item[1])
    text = ", ".join(f"{name}: {counted(tokens, 'token')}" for name, tokens in ordered[:MOST_DOMAINS])
    return text + (f", and {len(ordered) - MOST_DOMAINS:,} more" if len(ordered) > MOST_DOMAINS else "")


def _seen(facts: Mapping[str, Any]) -> str:
    text = counted(facts["num_tokens"], "token")
    if facts["num_decode_tokens"] is not None:
        text += f", {facts['num_decode_tokens']:,} of them generated"
    if facts["seen_share"] is not None:
        text += f"; the run was stopped after {100 * facts['seen_share']:.0f} % of its corpus"
    return text
