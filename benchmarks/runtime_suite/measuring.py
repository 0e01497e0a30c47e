"""Start the ranks in their namespaces, set the links' speed for each step that they ask for, and collect results."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layouts import NUM_RANKS, Scenario
from network import NamespaceError, Network

PROGRAM = Path(__file__).with_name("rank_program.py")
PORT = 29531


@dataclass(frozen=True, kw_only=True)
class Case:
    """One placement, or one outside baseline; `kind` and the rest as `rank_program` reads them."""

    name: str
    kind: str
    checkpoint: str
    attention: str
    workload: str


def measure(
    scenario: Scenario, cases: Sequence[Case], folder: Path, rounds: int, outside: Path | None
) -> list[dict[str, Any]]:
    """Every case at every speed; without the permission to make namespaces at one speed, the loopback's own."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*"):
        old.unlink()
    settings = {
        "folder": str(folder),
        "cases": [asdict(case) for case in cases],
        "rounds": rounds,
        "slowdowns": scenario.slowdowns,
    }
    try:
        with Network(scenario.topology.ranks_per_node) as network:
            settings |= {"interface": "eth0", "num_speeds": len(scenario.speeds)}
            return _Run(scenario, folder, settings, network, outside).results()
    except NamespaceError as error:
        print(f"{error}; running unshaped on the loopback instead", file=sys.stderr)
        settings |= {"interface": "lo", "num_speeds": 1}
        return _Run(scenario, folder, settings, None, outside).results()


class _Run:
    def __init__(
        self, scenario: Scenario, folder: Path, settings: dict[str, Any], network: Network | None, outside: Path | None
    ) -> None:
        self._scenario = scenario
        self._folder = folder
        self._settings = settings
        self._network = network
        self._outside = outside
        self._children: list[subprocess.Popen[bytes]] = []

    def results(self) -> list[dict[str, Any]]:
        """The ranks' results, each with the label of its speed and what the links between nodes carried for it."""
        (self._folder / "settings.json").write_text(json.dumps(self._settings))
        try:
            for rank in range(NUM_RANKS):
                self._children.append(self._start(rank))
            between_nodes = self._follow()
            self._check()
        finally:
            for child in self._children:
                child.kill()
        results: list[dict[str, Any]] = json.loads((self._folder / "results.json").read_text())
        for result in results:
            speed = self._scenario.speeds[result["speed"]]
            result["speed"] = speed.label if self._network else "unshaped"
            result["is_free"] = self._network is None or result["speed"] == self._scenario.speeds[0].label
            result["node_wire_bytes"] = between_nodes[result["step"]] / self._settings["rounds"]
        return results

    def _follow(self) -> dict[int, int]:
        """Answer every step; returns what the links between nodes carried during each."""
        carried: dict[int, int] = {}
        step = 0
        for _ in self._settings["cases"]:
            # A case is loaded on free links, then measured at each speed.
            for speed in (0, *range(self._settings["num_speeds"])):
                self._wait_for(f"want-{step}")
                before = self._carried()
                carried[step - 1] = before - carried.get(step - 1, 0)
                if self._network is not None:
                    chosen = self._scenario.speeds[speed]
                    self._network.set_speeds(chosen.rank, chosen.node)
                carried[step] = before
                (self._folder / f"set-{step}").touch()
                step += 1
        for child in self._children:
            child.wait()
        carried[step - 1] = self._carried() - carried[step - 1]
        return carried

    def _carried(self) -> int:
        return 0 if self._network is None else self._network.bytes_between_nodes()

    def _wait_for(self, name: str) -> None:
        while not (self._folder / name).exists():
            self._check()
            time.sleep(0.05)

    def _check(self) -> None:
        if any(child.poll() not in (None, 0) for child in self._children):
            raise SystemExit("a rank failed; its message is above")

    def _start(self, rank: int) -> "subprocess.Popen[bytes]":
        network = self._network
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(NUM_RANKS),
            "LOCAL_WORLD_SIZE": str(NUM_RANKS),
            "MASTER_ADDR": network.address(0) if network else "127.0.0.1",
            "MASTER_PORT": str(PORT),
            "GLOO_SOCKET_IFNAME": "eth0" if network else "lo",
            "OMP_NUM_THREADS": "1",
            "PYTHONSAFEPATH": "1",
            # The suite's own modules first: PYTHONSAFEPATH leaves the script's folder out.
            "PYTHONPATH": os.pathsep.join([str(PROGRAM.parent), *([str(self._outside)] if self._outside else [])]),
        }
        prefix = ["ip", "netns", "exec", network.namespace(rank)] if network else []
        command = [*prefix, sys.executable, str(PROGRAM), str(self._folder / "settings.json")]
        return subprocess.Popen(command, env=environment)
