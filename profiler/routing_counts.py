"""Counts over tokens, whole: pairs of experts, experts by token id, and experts by domain."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.profiler.domain_counter import DomainCounter
from specmoe.profiler.pair_counts import PairCounts
from specmoe.profiler.token_count_builder import TokenCountBuilder
from specmoe.profiler.token_counts import TokenExpertCounts

_DOMAINS = "domains."


class RoutingCounts:
    """A `PairCounts`, a `TokenCountBuilder` and a `DomainCounter` of `domains` over the same tokens."""

    def __init__(self, num_layers: int, num_logical_experts: int, domains: Sequence[str]) -> None:
        self.pairs = PairCounts(num_layers, num_logical_experts)
        self.by_token = TokenCountBuilder(num_layers, num_logical_experts)
        self.by_domain = DomainCounter(domains, num_layers, num_logical_experts)

    def add(self, expert_ids: Array, token_ids: NDArray[np.int32], domain_ids: NDArray[np.int64]) -> None:
        """Count `expert_ids` uint8 | uint16 [T, L, K] of the tokens `token_ids` int32 [T] in `domain_ids` [T]."""
        self.pairs.add(expert_ids)
        self.by_token.add(expert_ids, token_ids)
        self.by_domain.add(expert_ids, domain_ids)

    def state(self) -> dict[str, Array]:
        """All that `merge` needs to count on from here."""
        domains = {_DOMAINS + name: array for name, array in self.by_domain.state().items()}
        return self.pairs.state() | self.by_token.finish().to_tensors() | domains

    def merge(self, state: Mapping[str, Array]) -> None:
        """Add the counts of another's `state`."""
        self.pairs.merge(state)
        table = TokenExpertCounts.from_tensors(state)
        assert table is not None, "a state has a table of token counts"
        self.by_token.merge(table)
        domains = {name.removeprefix(_DOMAINS): array for name, array in state.items() if name.startswith(_DOMAINS)}
        self.by_domain.merge(domains)
