"""What a placement is worth on slow links: four ranks in network namespaces, the demo's model, measured.

    sudo python benchmarks/runtime.py --demo demo --work /tmp/runtime-benchmark

Serves held-out requests from the demo's profile under several placements and link speeds, in `dp`, on (a) four equal
ranks and (b) two nodes of two ranks with a slow link between them. Prints a table each and writes results.json. Bytes
are the interfaces' own counters. Where namespaces are not permitted it says so and runs unshaped on the loopback.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import specmoe
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

SUITE = Path(__file__).parent / "runtime_suite"
sys.path.append(str(SUITE))

from network import NamespaceError, Network  # noqa: E402 (the folder is no package: benchmarks are not installed)

NUM_RANKS = 4
PORT = 29531
# Links so fast that only computing and latency are left.
FREE = "free"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Machines and the speeds at which their links are tried: (label, Mbit/s of a rank, Mbit/s between nodes)."""

    name: str
    topology: Topology
    speeds: tuple[tuple[str, float, float | None], ...]


SCENARIOS = (
    Scenario(
        name="a: four ranks, equal links",
        topology=Topology(ranks_per_node=(4,)),
        speeds=((FREE, 10_000, None), ("200", 200, None), ("50", 50, None), ("20", 20, None)),
    ),
    Scenario(
        name="b: two nodes of two ranks, a slow link between them",
        topology=Topology(ranks_per_node=(2, 2), intra_node_gb_per_s=0.0625, inter_node_gb_per_s=0.0025),
        speeds=((FREE, 10_000, 10_000), ("500-50", 500, 50), ("500-20", 500, 20), ("500-10", 500, 10)),
    ),
)


def main() -> None:
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    fit = RoutingProfile.load(arguments.demo / "fit.profile")
    heldout = RoutingProfile.load(arguments.demo / "heldout.profile")
    requests = arguments.work / "requests.safetensors"
    save_file({"tokens": _requests(heldout, arguments.requests, arguments.prompt_tokens)}, requests)
    everything = {}
    for scenario in SCENARIOS:
        plans = _plans(fit, scenario.topology)
        compiled = {name: _compile(arguments, scenario, name, plan) for name, plan in plans.items()}
        results = _measure(arguments, scenario, compiled, requests)
        _print(scenario, results)
        everything[scenario.name] = [{k: v for k, v in found.items() if k != "generated"} for found in results]
    (arguments.work / "results.json").write_text(json.dumps(everything, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="the folder that make demo filled")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=16)
    return parser.parse_args()


def _requests(profile: RoutingProfile, number: int, length: int) -> torch.Tensor:
    """int64 [N, S]: the beginnings of `number` requests of the sample, evenly over the trace (domains are mixed)."""
    sample = profile.require_sample("this benchmark")
    assert sample.token_ids is not None
    assert sample.request_ids is not None
    starts = np.flatnonzero(np.diff(sample.request_ids, prepend=sample.request_ids[0] - 1))
    lengths = np.diff(starts, append=sample.num_tokens)
    long_enough = starts[lengths >= length]
    chosen = long_enough[np.linspace(0, len(long_enough) - 1, number).astype(int)]
    return torch.tensor(np.stack([sample.token_ids[start : start + length] for start in chosen])).long()


def _plans(fit: RoutingProfile, topology: Topology) -> dict[str, PlacementPlan]:
    quarter = fit.num_logical_experts // NUM_RANKS // 4
    solve: Callable[..., PlacementPlan] = specmoe.solve
    return {
        "linear": solve(fit, topology, method="linear"),
        "eplb": solve(fit, topology, method="eplb"),
        "optimized": solve(fit, topology, time_limit=60, best_effort=True),
        "optimized, 25 % replicas": solve(fit, topology, time_limit=60, extra_slots=quarter, best_effort=True),
    }


def _compile(arguments: argparse.Namespace, scenario: Scenario, name: str, plan: PlacementPlan) -> str:
    out = arguments.work / f"{scenario.name[0]}-{name.split(',')[0]}-{plan.num_physical_experts}"
    specmoe.reshard(arguments.demo / "model", plan, out, force=True)
    return str(out)


def _measure(
    arguments: argparse.Namespace, scenario: Scenario, compiled: dict[str, str], requests: Path
) -> list[dict[str, Any]]:
    folder = arguments.work / f"run-{scenario.name[0]}"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*"):
        old.unlink()
    settings = {
        "folder": str(folder),
        "placements": compiled,
        "requests": str(requests),
        "new_tokens": arguments.new_tokens,
    }
    try:
        with Network(scenario.topology.ranks_per_node) as network:
            settings |= {"interface": "eth0", "speeds": [label for label, _, _ in scenario.speeds]}
            return _run(settings, folder, scenario, network)
    except NamespaceError as error:
        print(f"{error}; running unshaped on the loopback instead", file=sys.stderr)
        settings |= {"interface": "lo", "speeds": ["unshaped"]}
        with nullcontext():
            return _run(settings, folder, scenario, None)


def _run(settings: dict[str, Any], folder: Path, scenario: Scenario, network: Network | None) -> list[dict[str, Any]]:
    (folder / "settings.json").write_text(json.dumps(settings))
    children = [_start(rank, folder, network) for rank in range(NUM_RANKS)]
    wanted = {label: speeds for label, *speeds in scenario.speeds} | {"unshaped": []}
    for label in settings["speeds"]:
        while not (folder / f"want-{label}").exists():
            _check(children)
            time.sleep(0.1)
        if network is not None:
            network.set_speeds(*wanted[label])
        (folder / f"set-{label}").touch()
    for child in children:
        child.wait()
    _check(children)
    results: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())
    return results


def _start(rank: int, folder: Path, network: Network | None) -> "subprocess.Popen[bytes]":
    program = [sys.executable, str(SUITE / "rank_program.py"), str(folder / "settings.json")]
    environment = os.environ | {
        "RANK": str(rank),
        "WORLD_SIZE": str(NUM_RANKS),
        "MASTER_ADDR": network.address(0) if network else "127.0.0.1",
        "MASTER_PORT": str(PORT),
        "GLOO_SOCKET_IFNAME": "eth0" if network else "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONSAFEPATH": "1",
    }
    prefix = ["ip", "netns", "exec", network.namespace(rank)] if network else []
    return subprocess.Popen([*prefix, *program], env=environment)


def _check(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    if any(child.poll() not in (None, 0) for child in children):
        for child in children:
            child.kill()
        raise SystemExit("a rank failed; its message is above")


def _print(scenario: Scenario, results: Sequence[dict[str, Any]]) -> None:
    print(f"\n### {scenario.name}\n")
    print(
        "| Mbit/s | placement | MB on the wire | of it rows | remote copies | first token s | s/token "
        "| time on the wire | gain | same output |"
    )
    print("|---" * 10 + "|")
    free = {found["placement"]: found["seconds"] for found in results if found["speed"] == FREE}
    for found in results:
        first = next(item for item in results if item["speed"] == found["speed"])
        same = "yes" if found["generated"] == first["generated"] else "NO"
        print(
            f"| {found['speed']} | {found['placement']} | {found['wire_bytes'] / 1e6:.2f} "
            f"| {found['row_bytes'] / found['wire_bytes']:.0%} | {found['remote_copies_per_token']:.3f} "
            f"| {found['first_token_seconds']:.2f} | {found['seconds_per_decoded_token']:.3f} "
            f"| {_share(free.get(found['placement']), found['seconds'])} "
            f"| {first['seconds'] / found['seconds']:.2f} | {same} |"
        )


def _share(free_seconds: float | None, seconds: float) -> str:
    """How much of the time goes to slow links: what is left when they cost nothing, taken away."""
    return "" if free_seconds is None else f"{max(1 - free_seconds / seconds, 0):.0%}"


if __name__ == "__main__":
    main()
