"""A reservoir of sampled requests as plain arrays, to be written to a file or sent to another process, and back."""

from collections.abc import Mapping

import numpy as np

from specmoe.artifact import Array
from specmoe.profiler.request_sample import RequestReservoir
from specmoe.profiler.request_stream import Request

# A request, its expert ids uint8 | uint16 [T, L, K], and its gate weights float16 [T, L, K].
Routing = tuple[Request, Array, Array]


def sample_state(reservoir: RequestReservoir[Routing], num_layers: int, top_k: int) -> dict[str, Array]:
    """The requests in `reservoir` one after the other, and the threshold below which it still takes some."""
    routings = list(reservoir.finish().values())
    requests = [request for request, _, _ in routings]
    nothing = np.zeros((0, num_layers, top_k))
    return {
        "threshold": np.asarray(divmod(reservoir.threshold, 2**32), dtype=np.uint64),
        "requests": np.asarray(
            [[item.index, item.domain_id, len(item.token_ids), item.num_generated] for item in requests], dtype=np.int64
        ).reshape(-1, 4),
        "token_ids": np.concatenate([*(item.token_ids for item in requests), np.zeros(0, dtype=np.int32)]),
        "expert_ids": np.concatenate([ids for _, ids, _ in routings] or [nothing.astype(np.uint8)]),
        "gate_weights": np.concatenate([weights for _, _, weights in routings] or [nothing.astype(np.float16)]),
    }


def merge_sample(reservoir: RequestReservoir[Routing], state: Mapping[str, Array]) -> None:
    """Put the requests of a `sample_state` into `reservoir`, as if it had seen all that the other one saw."""
    high, low = state["threshold"].tolist()
    reservoir.lower_threshold(high * 2**32 + low)
    start = 0
    for index, domain_id, length, num_generated in state["requests"].tolist():
        rows = slice(start, start + length)
        request = Request(
            index=index, domain_id=domain_id, token_ids=state["token_ids"][rows].copy(), num_generated=num_generated
        )
        # Copies: a view would keep all of the state in memory.
        reservoir.add(index, length, (request, state["expert_ids"][rows].copy(), state["gate_weights"][rows].copy()))
        start += length
