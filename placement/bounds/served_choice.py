"""What a search for the best placement and dispatch of a layer by its replica choice finds and proves."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ServedChoice:
    """bound: nothing that keeps the cap costs less; infinite where nothing keeps it. holds: bool [R, E] and dispatch:
    int32 [R, E], the ranks named, of what was found to cost less than the plan; None where nothing was.
    """

    bound: float
    cost: float
    holds: NDArray[np.bool_] | None = None
    dispatch: NDArray[np.int32] | None = None
