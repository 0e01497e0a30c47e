"""The counts of the decode tokens alone, beside a profile's counts over all tokens; what remains is prefill."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array, Description
from specmoe.errors import ArtifactError
from specmoe.fields import check_range, check_tensor, entry
from specmoe.profiler.domain_counts import DomainCounts, has_domain_counts
from specmoe.profiler.token_counts import TokenExpertCounts

# The values of a sample's `phases`: tokens that were read together, as a prompt is, and tokens that were generated.
PREFILL, DECODE = 0, 1
PREFIX = "decode."

Phase = Literal["all", "prefill", "decode"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True, kw_only=True)
class DecodeCounts:
    """expert_counts: int64 [L, E]; coactivation_counts: int64 [L, E, E]; transition_counts: int64 [L-1, E, E].

    As in the profile, over its decode tokens alone; `domains` are the profile's own, None where these were not counted.
    """

    num_tokens: int
    expert_counts: NDArray[np.int64]
    coactivation_counts: NDArray[np.int64]
    transition_counts: NDArray[np.int64]
    token_counts: TokenExpertCounts
    domains: DomainCounts | None = None

    def check(self, num_layers: int, num_logical_experts: int) -> None:
        """Raise `ArtifactError` unless all shapes and values fit the model's sizes."""
        L, E = num_layers, num_logical_experts
        for name, shape in (
            ("expert_counts", (L, E)),
            ("coactivation_counts", (L, E, E)),
            ("transition_counts", (L - 1, E, E)),
        ):
            check_tensor(PREFIX + name, getattr(self, name), (np.int64,), shape)
            check_range(PREFIX + name, getattr(self, name), 0, np.inf)
        self.token_counts.check(L, E)
        if self.domains is not None:
            self.domains.check(self.expert_counts)

    def to_tensors(self) -> dict[str, Array]:
        tensors = {name: getattr(self, name) for name in _NAMES} | self.token_counts.to_tensors()
        tensors |= {} if self.domains is None else self.domains.to_tensors()
        return {PREFIX + name: array for name, array in tensors.items()}

    @classmethod
    def from_file(cls, tensors: Mapping[str, Array], description: Description) -> "DecodeCounts | None":
        """The decode counts among a profile's tensors, None where there are none."""
        own = {name.removeprefix(PREFIX): array for name, array in tensors.items() if name.startswith(PREFIX)}
        if not own:
            return None
        token_counts = TokenExpertCounts.from_tensors(own)
        missing = [name for name in _NAMES if name not in own]
        if missing or token_counts is None:
            raise ArtifactError(f"tensor {PREFIX}{[*missing, 'token_counts.token_ids'][0]} is missing")
        arrays = {name: own[name] for name in _NAMES}
        return cls(
            num_tokens=entry(description, "num_decode_tokens", int),
            token_counts=token_counts,
            domains=DomainCounts.from_file(own, description) if has_domain_counts(own) else None,
            **arrays,
        )


_NAMES = ("expert_counts", "coactivation_counts", "transition_counts")
