"""Which process of a node stands in for a token that is at home on another node: its relay there.

The foreign tokens of a node, in the order of `TokenSlices`, are cut into one stretch for each of its processes, equal
to one token. Where nodes have as many processes, their first, second, … ones are each other's relays.
"""

from bisect import bisect_left, bisect_right
from itertools import accumulate


class NodeRoutes:
    """Of one batch; sizes: how many tokens are at home on each process; node_of_process: non-decreasing."""

    def __init__(self, sizes: list[int], node_of_process: list[int]) -> None:
        nodes = node_of_process
        # The processes of each one's node.
        self._members = [range(bisect_left(nodes, node), bisect_right(nodes, node)) for node in nodes]
        self._starts = [0, *accumulate(sizes)]

    def members(self, process: int) -> range:
        """The processes of the node of `process`."""
        return self._members[process]

    def native(self, process: int) -> range:
        """The places in the order of the tokens that are at home on the node of `process`."""
        members = self._members[process]
        return range(self._starts[members.start], self._starts[members.stop])

    def relayed(self, process: int) -> range:
        """The places, in the order without `native`, of the tokens for which `process` is the relay."""
        members = self._members[process]
        each, rest = divmod(self._starts[-1] - len(self.native(process)), len(members))
        number = process - members.start
        start = number * each + min(number, rest)
        return range(start, start + each + (number < rest))

    def crossing(self, home: int, relay: int) -> range:
        """The tokens at home on `home`, numbered from 0, for which `relay` is the relay; none on the same node."""
        members = self._members[relay]
        if home in members:
            return range(0)
        start, size = self._starts[home], self._starts[home + 1] - self._starts[home]
        if home >= members.stop:
            start -= len(self.native(relay))
        relayed = self.relayed(relay)
        first = max(relayed.start - start, 0)
        return range(first, max(first, min(relayed.stop - start, size)))
