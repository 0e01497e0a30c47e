"""A plan from its header: machine, slots, tables, and what the solver promised."""

from collections.abc import Iterator, Mapping
from typing import Any

from specmoe.cli.inspection.inspection import FileHeader, Inspection, counted
from specmoe.errors import ArtifactError, UsageError
from specmoe.fields import entry, optional_entry
from specmoe.placement.topology import Topology

ATTENTION = {
    "dp": "dp: a request stays on one rank in all layers",
    "tp": "tp: every layer deals its tokens out to the ranks anew",
}
TABLES = ("token_affinity", "token_to_rank")


def inspect_plan(header: FileHeader) -> Inspection:
    """Facts and lines of the plan file `header`; its tensors' shapes are believed, its slots are not looked at."""
    facts = plan_facts(header)
    fingerprints = [(f"for the {name}", facts[f"{name}_fingerprint"] or "not named") for name in ("profile", "model")]
    return Inspection(
        path=header.path,
        kind="placement plan",
        format=str(header.description["format"]),
        num_bytes=header.num_bytes,
        facts=facts,
        lines=[*plan_lines(facts), *fingerprints],
    )


def plan_facts(header: FileHeader) -> dict[str, Any]:
    """The plan by name; "num_replicas": replica slots in each layer; "token_table": the table's ids, None without;
    "has_expected_pairs": whether it says what traffic to expect.
    """
    description = header.description
    shape = header.shape("physical_to_logical")
    if shape is None or len(shape) != 2:
        raise ArtifactError("tensor physical_to_logical is missing or has not two dimensions")
    try:
        topology = Topology.from_json(description.get("topology"))
    except UsageError as error:
        raise ArtifactError(str(error)) from error
    num_experts = entry(description, "num_logical_experts", int)
    table = next((name for name in TABLES if name in header.tensors), None)
    return {
        "num_layers": shape[0],
        "num_logical_experts": num_experts,
        "num_physical_experts": shape[1],
        "num_replicas": shape[1] - num_experts,
        "top_k": entry(description, "top_k", int),
        "ep_size": topology.ep_size,
        "topology": topology.to_json(),
        "attention": entry(description, "attention", str),
        "replica_choice": entry(description, "replica_choice", str),
        "token_table": None if table is None else _table(header, table),
        "has_expected_pairs": "expected_pairs" in header.tensors,
        "method": entry(description, "method", str),
        "seed": entry(description, "seed", int),
        **{name: optional_entry(description, name, float) for name in ("objective", "bound", "gap")},
        "predicted": entry(description, "predicted", dict),
        **{name: optional_entry(description, name, str) for name in ("profile_fingerprint", "model_fingerprint")},
    }


def plan_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts for a person."""
    experts = counted(facts["num_logical_experts"], "expert")
    yield "model", f"{counted(facts['num_layers'], 'MoE layer')}, {experts}, top-{facts['top_k']}"
    yield "ranks", _ranks(facts["topology"], facts["ep_size"])
    yield "slots", _slots(facts)
    yield "attention", ATTENTION.get(facts["attention"], facts["attention"])
    table = facts["token_table"]
    yield (
        "token table",
        "none" if table is None else f"{table['name']} for {counted(table['num_token_ids'], 'token id')}",
    )
    traffic = "by home rank and slot, divides capacity bounds" if facts["has_expected_pairs"] else "not stated"
    yield "traffic", traffic
    yield "solved by", f"{facts['method']}, seed {facts['seed']}"
    if facts["objective"] is not None:
        weighted = ", weighted by link cost" if "inter_node_gb_per_s" in facts["topology"] else ""
        yield (
            "objective",
            f"{facts['objective']:.3f} remote copies per token{weighted}, on the profile it was solved from",
        )
    yield "proven bound", _bound(facts)
    yield from _predicted(facts["predicted"])


def _table(header: FileHeader, name: str) -> dict[str, Any]:
    shape = header.tensors[name].shape
    if len(shape) != 2:
        raise ArtifactError(f"tensor {name} has not two dimensions")
    return {"name": name, "num_token_ids": shape[0] if name == "token_affinity" else shape[1]}


def _ranks(topology: Mapping[str, Any], ep_size: int) -> str:
    per_node = topology["ranks_per_node"]
    if len(per_node) == 1:
        return f"{ep_size:,} on one node"
    equal = len(set(per_node)) == 1
    shares = f"{per_node[0]} each" if equal else " + ".join(map(str, per_node))
    return f"{ep_size:,} on {len(per_node):,} nodes ({shares})"


def _slots(facts: Mapping[str, Any]) -> str:
    text = f"{facts['num_physical_experts']:,} in each layer"
    if facts["num_replicas"] == 0:
        return f"{text}, one for every expert"
    reach = {"static": "a fixed one for each rank", "cover": "the fewest ranks for each token"}
    choice = reach.get(facts["replica_choice"], "")
    return f"{text}, {facts['num_replicas']:,} of them replicas, reached by {facts['replica_choice']} choice: {choice}"


def _bound(facts: Mapping[str, Any]) -> str:
    if facts["bound"] is None:
        return "none"
    gap = "" if facts["gap"] is None else f", gap {facts['gap']:.1%}"
    return f"{facts['bound']:.3f} remote copies per token{gap}"


def _predicted(predicted: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    held_out = predicted.get("held_out_objective")
    if isinstance(held_out, int | float):
        yield "expected", f"{held_out:.3f} remote copies per token on other requests"
    on_profile = predicted.get("profile")
    imbalance = on_profile.get("load_imbalance") if isinstance(on_profile, dict) else None
    if isinstance(imbalance, int | float):
        yield "load imbalance", f"{imbalance:.3f} on the profile, mean over layers"
    missing = predicted.get("missing")
    for note in missing if isinstance(missing, list) else []:
        yield "note", str(note)
