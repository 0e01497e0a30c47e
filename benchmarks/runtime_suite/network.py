"""Ranks in network namespaces of their own, joined by links whose speed can be set (Linux, root).

Every rank's namespace has one interface, `eth0`, on its node's bridge in a namespace called the hub; nodes' bridges
are joined by one more link. Both ends of each link are shaped with a token bucket, so that a speed holds each way.
"""

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

PREFIX = "specmoe"
SUBNET = "10.231.0"
QUEUE_BYTES = 64 * 2**20
# Jumbo frames, as networks between GPUs have.
MTU = 9000


class NamespaceError(RuntimeError):
    """Network namespaces cannot be made here."""


class Network:
    """A context: made on entering, removed on leaving; ranks_per_node as in a topology."""

    def __init__(self, ranks_per_node: Sequence[int]) -> None:
        self._nodes = [node for node, size in enumerate(ranks_per_node) for _ in range(size)]
        self._num_nodes = len(ranks_per_node)
        self._name = f"{PREFIX}{os.getpid()}"
        self._hub = f"{self._name}-hub"

    def namespace(self, rank: int) -> str:
        return f"{self._name}-{rank}"

    def address(self, rank: int) -> str:
        return f"{SUBNET}.{rank + 1}"

    def set_speeds(self, rank_mbit: float, node_mbit: float | None) -> None:
        """Shape every rank's link to `rank_mbit` megabits per second each way, and the links between nodes."""
        for rank in range(len(self._nodes)):
            _shape(self.namespace(rank), "eth0", rank_mbit)
            _shape(self._hub, f"rank{rank}", rank_mbit)
        for node in range(1, self._num_nodes):
            for interface in (f"up{node}", f"down{node}"):
                _shape(self._hub, interface, node_mbit or rank_mbit)

    def bytes_between_nodes(self) -> int:
        """What the links between nodes have carried so far, both ways, headers included."""
        names = [f"{end}{node}" for node in range(1, self._num_nodes) for end in ("up", "down")]
        return sum(_sent_bytes(self._hub, name) for name in names)

    def __enter__(self) -> "Network":
        try:
            _remove_left_over()
            self._make()
        except FileNotFoundError as error:
            raise NamespaceError(f"network namespaces cannot be made here: {error}") from error
        except subprocess.CalledProcessError as error:
            self._remove()
            raise NamespaceError(f"network namespaces cannot be made here: {error.stderr or error}".strip()) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _make(self) -> None:
        _ip("netns", "add", self._hub)
        for node in range(self._num_nodes):
            _in(self._hub, "ip", "link", "add", f"bridge{node}", "type", "bridge")
            _in(self._hub, "ip", "link", "set", f"bridge{node}", "up")
        for node in range(1, self._num_nodes):
            _in(
                self._hub,
                "ip",
                "link",
                "add",
                f"up{node}",
                "mtu",
                str(MTU),
                "type",
                "veth",
                "peer",
                "name",
                f"down{node}",
            )
            _in(self._hub, "ip", "link", "set", f"down{node}", "mtu", str(MTU))
            _in(self._hub, "ip", "link", "set", f"up{node}", "master", "bridge0", "up")
            _in(self._hub, "ip", "link", "set", f"down{node}", "master", f"bridge{node}", "up")
        for rank, node in enumerate(self._nodes):
            self._add_rank(rank, node)

    def _add_rank(self, rank: int, node: int) -> None:
        namespace = self.namespace(rank)
        _ip("netns", "add", namespace)
        _in(self._hub, "ip", "link", "add", f"rank{rank}", "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _in(self._hub, "ip", "link", "set", f"rank{rank}", "mtu", str(MTU), "master", f"bridge{node}", "up")
        _in(namespace, "ip", "address", "add", f"{self.address(rank)}/24", "dev", "eth0")
        _in(namespace, "ip", "link", "set", "eth0", "mtu", str(MTU))
        for interface in ("lo", "eth0"):
            _in(namespace, "ip", "link", "set", interface, "up")

    def _remove(self) -> None:
        for namespace in (*(self.namespace(rank) for rank in range(len(self._nodes))), self._hub):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def _remove_left_over() -> None:
    """Namespaces of a run that was killed before it could remove them."""
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        name = line.split()[0] if line else ""
        owner = re.fullmatch(rf"{PREFIX}(\d+)-\w+", name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _shape(namespace: str, interface: str, mbit: float) -> None:
    # A burst of 2 ms of the link, and never less than two packets.
    burst = max(int(mbit * 1e6 / 8 * 0.002), 2 * MTU)
    rate = ("rate", f"{mbit}mbit", "burst", str(burst), "limit", str(QUEUE_BYTES))
    _in(namespace, "tc", "qdisc", "replace", "dev", interface, "root", "tbf", *rate)


def _sent_bytes(namespace: str, interface: str) -> int:
    command = ["ip", "-n", namespace, "-s", "-j", "link", "show", "dev", interface]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(json.loads(shown)[0]["stats64"]["tx"]["bytes"])


def _in(namespace: str, *command: str) -> None:
    _ip("netns", "exec", namespace, *command)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
