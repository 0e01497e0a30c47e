"""Import another engine's record of routing, by the engine's name."""

from pathlib import Path
from typing import Literal, get_args

from specmoe.errors import UsageError
from specmoe.profiler.import_npz import import_npz
from specmoe.profiler.import_sglang import import_sglang
from specmoe.profiler.import_trtllm import import_trtllm
from specmoe.profiler.import_vllm import import_vllm
from specmoe.profiler.model_facts import ModelFacts
from specmoe.profiler.routing_profile import RoutingProfile

Engine = Literal["npz", "vllm", "sglang", "trtllm"]
ENGINES: tuple[Engine, ...] = get_args(Engine)


def import_record(
    path: str | Path,
    engine: Engine,
    facts: ModelFacts | None = None,
    *,
    sample_tokens: int | None = None,
    seed: int = 0,
) -> RoutingProfile:
    """The profile of `path`, written by `engine`; `facts` supply what the record leaves out about the model."""
    path, facts = Path(path), facts or ModelFacts()
    if engine not in ENGINES:
        raise UsageError(f"engine is {engine!r}, one of {', '.join(ENGINES)} was expected")
    if engine == "npz":
        if facts != ModelFacts():
            raise UsageError("an npz trace says all sizes itself; leave the options about the model out")
        return import_npz(path, sample_tokens=sample_tokens, seed=seed)
    if not path.exists():
        raise UsageError(f"{path} does not exist; give the file or folder that {engine} wrote")
    if engine == "trtllm":
        if sample_tokens is not None:
            raise UsageError("TensorRT-LLM's statistics are counts without tokens to sample; leave sample_tokens out")
        return import_trtllm(path, facts)
    read = import_vllm if engine == "vllm" else import_sglang
    return read(path, facts, sample_tokens=sample_tokens, seed=seed)
