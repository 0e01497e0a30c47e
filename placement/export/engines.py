"""The engines that `specmoe export --to` knows, by name."""

from collections.abc import Mapping

from specmoe.placement.export.engine import Engine
from specmoe.placement.export.neutral import NEUTRAL
from specmoe.placement.export.sglang import SGLANG
from specmoe.placement.export.trtllm import TRTLLM
from specmoe.placement.export.vllm import VLLM
from specmoe.placement.export.vllm_ascend import VLLM_ASCEND

ENGINES: Mapping[str, Engine] = {
    "sglang": SGLANG,
    "trtllm": TRTLLM,
    "vllm": VLLM,
    "vllm-ascend": VLLM_ASCEND,
    "json": NEUTRAL,
}
