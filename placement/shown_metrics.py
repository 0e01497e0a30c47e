"""How a metric is shown, on the page and in the terminal: heading, unit, digits, and which way is better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specmoe.placement.metrics import PlacementMetrics


@dataclass(frozen=True, kw_only=True)
class ShownMetric:
    """name: as in `PlacementMetrics`; scale: 100 for a share that is written in per cent."""

    name: str
    heading: str
    unit: str
    more_is_better: bool = False
    digits: int = 3
    scale: float = 1.0

    def value(self, metrics: PlacementMetrics) -> float:
        """The metric, scaled as it is shown."""
        return float(getattr(metrics, self.name)) * self.scale

    def write(self, metrics: PlacementMetrics) -> str:
        return f"{self.value(metrics):.{self.digits}f}"

    def best(self, several: Sequence[PlacementMetrics]) -> str | None:
        """The best value as written, so that what reads the same is equally good; None where all read the same."""
        if len({self.write(metrics) for metrics in several}) == 1:
            return None
        choose: Callable[[Sequence[float]], float] = max if self.more_is_better else min
        return f"{choose([self.value(metrics) for metrics in several]):.{self.digits}f}"


REMOTE_COPIES = ShownMetric(
    name="remote_copies_per_token", heading="Remote copies per token", unit="hidden states sent to other ranks"
)
INTERNODE_COPIES = ShownMetric(
    name="internode_copies_per_token", heading="To other nodes", unit="other nodes that a token's hidden state goes to"
)
LOCAL_SHARE = ShownMetric(
    name="local_activation_rate",
    heading="Served at home",
    unit="% of (token, expert) pairs",
    more_is_better=True,
    digits=1,
    scale=100.0,
)
LOAD_IMBALANCE = ShownMetric(
    name="load_imbalance", heading="Load imbalance", unit="heaviest rank's (token, expert) pairs over the mean rank's"
)
BALANCEDNESS = ShownMetric(name="balancedness", heading="Balancedness", unit="1 / load imbalance", more_is_better=True)
TOKEN_IMBALANCE = ShownMetric(
    name="token_imbalance", heading="Token imbalance", unit="most tokens at home on one rank over the mean"
)


def shown_metrics(*, several_nodes: bool) -> list[ShownMetric]:
    """The metrics in the order of the columns; balancedness, the inverse of another, is not among them."""
    between = [INTERNODE_COPIES] if several_nodes else []
    return [REMOTE_COPIES, *between, LOCAL_SHARE, LOAD_IMBALANCE, TOKEN_IMBALANCE]
