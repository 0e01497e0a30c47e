"""Copies with the dispatch that serves them best: fewest copies under the load cap, loads spread among equals."""

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.plan import ReplicaChoice
from specmoe.placement.solvers.copies import Copies, Items, Network, copies_from, serve_items
from specmoe.placement.solvers.dispatch_search import improve_dispatch
from specmoe.placement.solvers.swap_search import OVERLOAD_PRICES

_SPREAD_PRICE = 0.02
_PASSES = 6


def dispatched(items: Items, copies: Copies, network: Network, ceiling: float, choice: ReplicaChoice) -> Copies:
    """The same copies, on which `improve_dispatch` has chosen; ceiling: pairs per unit of speed."""
    state = copies_from(copies.holds.astype(np.bool_))
    improve_dispatch(items, choice == "cover", state, network, ceiling, OVERLOAD_PRICES[1], _SPREAD_PRICE, _PASSES)
    return state


def served_load(
    items: Items, copies: Copies, network: Network, choice: ReplicaChoice
) -> tuple[NDArray[np.float64], float]:
    """float64 [R]: the pairs that each rank serves by the dispatch that the copies have, and what all tokens cost."""
    load, served = np.zeros(len(network.node)), np.zeros(items.experts.shape, dtype=np.int16)
    total = serve_items(items, choice == "cover", copies, network, served, np.zeros(len(items.experts)), load)
    return load, total
