"""Start the ranks in their namespaces, set the links' speed for each step that they ask for, and collect results."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layouts import NUM_RANKS, Scenario
from network import NamespaceError, Network

PROGRAM = Path(__file__).with_name("rank_program.py")
PORT = 29531


@dataclass(frozen=True, kw_only=True)
class Case:
    """One placement, or one outside baseline, and the numbers of the scenario's speeds at which it is measured; `kind`
    and the rest as `rank_program` reads them."""

    name: str
    kind: str
    checkpoint: str
    attention: str
    workload: str
    speeds: tuple[int, ...]


# Is given the results of all cases that are done.
Progress = Callable[[list[dict[str, Any]]], None]


def measure(
    scenario: Scenario, cases: Sequence[Case], folder: Path, rounds: int, outside: Path | None, progress: Progress
) -> list[dict[str, Any]]:
    """Every case at its speeds; without the permission to make namespaces at one speed, the loopback's own."""
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
            settings |= {"interface": "eth0"}
            return _Run(scenario, folder, settings, network, outside, progress).results()
    except NamespaceError as error:
        print(f"{error}; running unshaped on the loopback instead", file=sys.stderr)
        settings |= {"interface": "lo", "cases": [asdict(case) | {"speeds": [0]} for case in cases]}
        return _Run(scenario, folder, settings, None, outside, progress).results()


class _Run:
    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        settings: dict[str, Any],
        network: Network | None,
        outside: Path | None,
        progress: Progress,
    ) -> None:
        self._scenario = scenario
        self._folder = folder
        self._settings = settings
        self._network = network
        self._outside = outside
        self._progress = progress
        self._children: list[subprocess.Popen[bytes]] = []
        # What the links between nodes carried during each step.
        self._carried: dict[int, int] = {}

    def results(self) -> list[dict[str, Any]]:
        """The ranks' results, each with the label of its speed and what the links between nodes carried for it."""
        (self._folder / "settings.json").write_text(json.dumps(self._settings))
        try:
            for rank in range(NUM_RANKS):
                self._children.append(self._start(rank))
            self._follow()
            self._check()
        finally:
            for child in self._children:
                child.kill()
        return self._found()

    def _found(self) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = json.loads((self._folder / "results.json").read_text())
        for result in results:
            speed = self._scenario.speeds[result["speed"]]
            result["speed"] = speed.label if self._network else "unshaped"
            result["is_free"] = self._network is None or result["speed"] == self._scenario.speeds[0].label
            result["node_wire_bytes"] = self._carried[result["step"]] / result.get("rounds", 1)
        return results

    def _follow(self) -> None:
        """Answer every step."""
        step, before = 0, 0
        for number, case in enumerate(self._settings["cases"]):
            # A case is loaded on free links, then measured at each speed.
            for place, speed in enumerate((0, *case["speeds"])):
                self._wait_for(f"want-{step}")
                carried = self._bytes_between_nodes()
                self._carried[step - 1], before = carried - before, carried
                if number > 0 and place == 0:
                    self._progress(self._found())
                if self._network is not None:
                    chosen = self._scenario.speeds[speed]
                    self._network.set_speeds(chosen.rank, chosen.node)
                (self._folder / f"set-{step}").touch()
                step += 1
        for child in self._children:
            child.wait()
        self._carried[step - 1] = self._bytes_between_nodes() - before

    def _bytes_between_nodes(self) -> int:
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
