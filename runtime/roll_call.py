"""Find out, after a collective failed, which processes no longer answer."""

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

PATIENCE = timedelta(seconds=3)


def silent_processes() -> list[int]:
    """The processes that did not sign the roll within a few seconds; collective among those that live.

    They sign in the store with which the default group was started. A process that ended or hangs does not; the
    others meet here because their collectives fail with it. Empty where the store itself is gone.
    """
    try:
        # The group's own store is the one channel that is left; torch has no public name for it.
        store = distributed_c10d._get_default_store()
        store.set(_signature(dist.get_rank()), "here")
    except (RuntimeError, ValueError):
        return []
    return [process for process in range(dist.get_world_size()) if not _signed(store, process)]


def _signed(store: Any, process: int) -> bool:
    try:
        store.wait([_signature(process)], PATIENCE)
    except (RuntimeError, ValueError):
        return False
    return True


def _signature(process: int) -> str:
    return f"specmoe/roll-call/{process}"
