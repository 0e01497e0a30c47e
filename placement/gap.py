"""How far an objective lies above its proven lower bound, as a share of the bound; both in copies per token."""

# What a search for a bound that ended at once may have left as rounding.
_NO_BOUND = 1e-6


def gap_above(bound: float, objective: float) -> float | None:
    """0 where the objective meets the bound; None where the bound is 0 and the objective is not: any share of nothing
    would do.
    """
    if objective <= bound:
        return 0.0
    return None if bound < _NO_BOUND else (objective - bound) / bound
