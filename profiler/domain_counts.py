"""How often each domain of a corpus used each expert."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array, Description
from specmoe.errors import ArtifactError
from specmoe.fields import check_range, check_tensor, entry

PREFIX = "domains."


@dataclass(frozen=True, kw_only=True)
class DomainCounts:
    """names: the D domains, in the order of a sample's `domain_ids`; num_tokens: int64 [D]; expert_counts: int64
    [D, L, E], which sum to the profile's.
    """

    names: tuple[str, ...]
    num_tokens: NDArray[np.int64]
    expert_counts: NDArray[np.int64]

    def check(self, expert_counts: NDArray[np.int64]) -> None:
        """Raise `ArtifactError` unless the arrays fit the names and the profile's `expert_counts` int64 [L, E]."""
        D = len(self.names)
        check_tensor(PREFIX + "num_tokens", self.num_tokens, (np.int64,), (D,))
        check_range(PREFIX + "num_tokens", self.num_tokens, 0, np.inf)
        check_tensor(PREFIX + "expert_counts", self.expert_counts, (np.int64,), (D, *expert_counts.shape))
        check_range(PREFIX + "expert_counts", self.expert_counts, 0, np.inf)
        if not np.array_equal(self.expert_counts.sum(axis=0), expert_counts):
            raise ArtifactError(f"the sum of {PREFIX}expert_counts over domains differs from expert_counts")

    def without(self, part: "DomainCounts") -> "DomainCounts":
        """The counts of the tokens that are not in `part`, which has the same domains."""
        return replace(
            self, num_tokens=self.num_tokens - part.num_tokens, expert_counts=self.expert_counts - part.expert_counts
        )

    def to_tensors(self) -> dict[str, Array]:
        return {PREFIX + "num_tokens": self.num_tokens, PREFIX + "expert_counts": self.expert_counts}

    @classmethod
    def from_file(cls, tensors: Mapping[str, Array], description: Description) -> "DomainCounts | None":
        """The domains of a profile, None where it has none."""
        if description.get("domains") is None:
            return None
        names = entry(description, "domains", list)
        for name in ("num_tokens", "expert_counts"):
            if PREFIX + name not in tensors:
                raise ArtifactError(f"tensor {PREFIX}{name} is missing")
        return cls(
            names=tuple(str(name) for name in names),
            num_tokens=tensors[PREFIX + "num_tokens"],
            expert_counts=tensors[PREFIX + "expert_counts"],
        )


def has_domain_counts(tensors: Mapping[str, Array]) -> bool:
    """Whether any tensor of a `DomainCounts` is among `tensors`."""
    return any(name.startswith(PREFIX) for name in tensors)
