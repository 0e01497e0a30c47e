"""Shuffles that know of nodes: the flat ones' values and rows, of which as few as can be go between nodes."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from specmoe.runtime.flat_shuffle import FlatShuffle
from specmoe.runtime.node_routes import NodeRoutes
from specmoe.runtime.node_shuffle import NodeShuffle
from specmoe.runtime.token_homes import TokenSlices
from specmoe.runtime.workers import Workers

WIDTH = 4
# The node of each process, and how many tokens are at home there.
BATCHES = {
    "two nodes of two": ([0, 0, 1, 1], [6, 5, 5, 5]),
    "one process on a node, three on the other": ([0, 1, 1, 1], [3, 3, 3, 2]),
    "three nodes of one, two and three": ([0, 1, 1, 2, 2, 2], [4, 4, 4, 4, 3, 3]),
    "three nodes of two": ([0, 0, 1, 1, 2, 2], [2, 2, 2, 1, 1, 1]),
    "one process on each node": ([0, 1, 2], [2, 2, 1]),
    "empty slices": ([0, 0, 1, 1], [1, 1, 0, 0]),
    "nobody at home on the first node": ([0, 0, 1, 1, 1], [0, 0, 7, 0, 2]),
    "no tokens": ([0, 0, 1, 1], [0, 0, 0, 0]),
}


class Post:
    """In place of a process group: what all processes, here threads, send in one all-to-all."""

    def __init__(self, world_size):
        self.barrier = Barrier(world_size, timeout=5)
        self.parcels = [None] * world_size


class PostedRows:
    """In place of `RowExchange`; rows_to: how many rows went to each process so far."""

    def __init__(self, workers, post):
        self.workers = workers
        self.rows_to = [0] * workers.world_size
        self._post = post

    def all_to_all(self, sent, sent_rows, received_rows):
        self._post.parcels[self.workers.process] = sent.split(sent_rows)
        self._post.barrier.wait()
        received = [parcels[self.workers.process] for parcels in self._post.parcels]
        assert [len(rows) for rows in received] == received_rows
        self._post.barrier.wait()
        self.rows_to = [total + rows for total, rows in zip(self.rows_to, sent_rows, strict=True)]
        return torch.cat(received)


def on_every_process(by_node, nodes, sizes, action):
    """`action(process, shuffle, slices)` on a thread each, and how many rows went from each process to each; the tokens
    are dealt out at random."""
    world_size, num_tokens = len(nodes), sum(sizes)
    post = Post(world_size)
    drawn = torch.randperm(num_tokens, generator=torch.Generator().manual_seed(7)).split(sizes)
    at_home = [tokens.sort().values for tokens in drawn]

    def run(process):
        workers = Workers(ep_size=world_size, process=process, world_size=world_size, device=torch.device("cpu"))
        rows = PostedRows(workers, post)
        own = at_home[process]
        homes = torch.full((len(own),), process, dtype=torch.int32)
        slices = TokenSlices(order=torch.cat(at_home), sizes=sizes, own=own, homes=homes)
        shuffle = NodeShuffle(rows, nodes) if by_node else FlatShuffle(rows)
        return action(process, shuffle, slices), rows.rows_to

    with ThreadPoolExecutor(world_size) as pool:
        results, rows = zip(*pool.map(run, range(world_size)), strict=True)
    return results, torch.tensor(rows)


def scattered(process, shuffle, slices):
    # Whole numbers: their sums are exact in any order.
    partial = torch.arange(sum(slices.sizes) * WIDTH, dtype=torch.float32).view(-1, WIDTH) * (process + 1)
    assert torch.equal(shuffle.reduce_scatter(partial, slices), partial[slices.own] / (process + 1) * total(slices))


def total(slices):
    return sum(range(len(slices.sizes) + 1))


def gathered(_process, shuffle, slices):
    stream = torch.arange(sum(slices.sizes) * WIDTH, dtype=torch.bfloat16).view(-1, WIDTH)
    assert torch.equal(shuffle.all_gather(stream[slices.own], slices), stream)


@pytest.mark.parametrize("action", [scattered, gathered])
@pytest.mark.parametrize("by_node", [False, True], ids=["flat", "by node"])
@pytest.mark.parametrize(("nodes", "sizes"), BATCHES.values(), ids=BATCHES.keys())
def test_every_token_is_summed_at_home_and_comes_back_to_all(nodes, sizes, by_node, action):
    _, rows = on_every_process(by_node, nodes, sizes, action)
    of_others = rows.sum() - rows.trace()
    assert of_others == (len(nodes) - 1) * sum(sizes), "half of what the all-reduce sends"


@pytest.mark.parametrize("action", [scattered, gathered])
@pytest.mark.parametrize(("nodes", "sizes"), BATCHES.values(), ids=BATCHES.keys())
def test_a_token_crosses_to_or_from_every_other_node_once(nodes, sizes, action):
    node = torch.tensor(nodes)
    is_between = node[:, None] != node
    _, by_node = on_every_process(True, nodes, sizes, action)
    _, flat = on_every_process(False, nodes, sizes, action)
    assert by_node[is_between].sum() == (len(set(nodes)) - 1) * sum(sizes)
    assert by_node[is_between].sum() <= flat[is_between].sum()


def test_sums_are_rounded_once_more_where_they_cross_and_equal_on_every_run():
    def sums(process, shuffle, slices):
        partial = torch.randn((21, WIDTH), generator=torch.Generator().manual_seed(process))
        return shuffle.reduce_scatter(partial.bfloat16(), slices), slices.own

    nodes, sizes = BATCHES["two nodes of two"]
    expected = sum(
        torch.randn((21, WIDTH), generator=torch.Generator().manual_seed(p)).bfloat16().float() for p in range(4)
    )
    first, _ = on_every_process(True, nodes, sizes, sums)
    again, _ = on_every_process(True, nodes, sizes, sums)
    for (own, tokens), (own_again, _) in zip(first, again, strict=True):
        assert torch.equal(own, own_again)
        assert (own - expected[tokens]).abs().max() <= 2**-7 * expected.abs().max()


@pytest.mark.parametrize(("nodes", "sizes"), BATCHES.values(), ids=BATCHES.keys())
def test_relays_of_a_node_share_its_foreign_tokens_evenly(nodes, sizes):
    routes = NodeRoutes(sizes, nodes)
    for process in range(len(nodes)):
        shares = [len(routes.relayed(member)) for member in routes.members(process)]
        assert max(shares) - min(shares) <= 1
        assert sum(shares) == sum(size for node, size in zip(nodes, sizes, strict=True) if node != nodes[process])
