"""Everything that decides what the demo's model is: change a number here and the demo trains anew."""

import hashlib
import json
from dataclasses import asdict, dataclass, field

from demo.corpus import Quotas


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A Qwen3-MoE, small enough to learn something on two processor cores in two minutes."""

    vocab_size: int = 2048
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_experts: int = 32
    top_k: int = 4
    expert_width: int = 64
    shard_size: str = "4MB"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How it is trained.

    balance_weight multiplies the load-balancing loss: enough that no expert dies, little enough that experts
    specialise as those of large models do. time_limit_seconds: a slow machine stops at about this time with fewer
    steps, its learning rate lowered sooner.
    """

    steps: int = 300
    sequence_tokens: int = 256
    sequences_per_domain: int = 2
    learning_rate: float = 3e-3
    final_rate_share: float = 0.05
    warmup_share: float = 0.05
    weight_decay: float = 0.1
    balance_weight: float = 0.01
    gradient_norm: float = 1.0
    time_limit_seconds: float = 155.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Settings:
    quotas: Quotas = field(default_factory=Quotas)
    shape: ModelShape = field(default_factory=ModelShape)
    recipe: Recipe = field(default_factory=Recipe)

    def digest(self) -> str:
        """SHA-256 over every number, as hexadecimal."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
