"""What each domain of a trace costs under a plan.

Tokens have the home ranks that they have in the whole trace: a domain is judged as a part of the mixed traffic, not
as if it were served alone. Its load imbalance is that of its own tokens' pairs, and so says how uneven the ranks would
be if all traffic were of this kind.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specmoe.errors import ArtifactError
from specmoe.placement.homes import homes_of
from specmoe.placement.metrics import PlacementMetrics, count_traffic, mean_metrics
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.serving import serve_layer
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

OTHER = "no domain"


@dataclass(frozen=True, kw_only=True)
class DomainMetrics:
    """One domain of a trace, by its name: its tokens there, and their metrics as means over layers."""

    domain: str
    num_tokens: int
    mean: PlacementMetrics

    def to_json(self) -> dict[str, Any]:
        return {"domain": self.domain, "num_tokens": self.num_tokens, "mean": self.mean.to_json()}


@dataclass(frozen=True, kw_only=True)
class DomainRows:
    """Which rows of a sample belong to a domain: rows int64, increasing."""

    domain: str
    rows: NDArray[np.int64]


def domain_rows(profile: RoutingProfile) -> list[DomainRows]:
    """The domains that the sample of `profile` has tokens of, in the order of their ids.

    Raises `ArtifactError` where the sample does not know the domains of its tokens.
    """
    sample = profile.require_sample("figures by domain")
    if sample.domain_ids is None:
        raise ArtifactError(
            "figures by domain need a profile that knows its tokens' domains; make one with specmoe profile, where "
            "each data file is a domain or each value of --domain-column"
        )
    names = () if profile.domains is None else profile.domains.names
    found = []
    for number in np.unique(sample.domain_ids).tolist():
        name = OTHER if number < 0 else names[number] if number < len(names) else str(number)
        found.append(DomainRows(domain=name, rows=np.flatnonzero(sample.domain_ids == number)))
    return found


def measure_domains(plan: PlacementPlan, sample: RoutingSample, domains: list[DomainRows]) -> tuple[DomainMetrics, ...]:
    """The metrics of each of `domains` of a sample of the same model under `plan`."""
    homes, node_of_rank = homes_of(plan, sample), plan.topology.node_of_rank

    def one_layer(layer: int) -> list[PlacementMetrics]:
        home = homes[layer]
        served_by = serve_layer(plan, layer, sample.expert_ids[:, layer], home)
        own = [(served_by[domain.rows], home[domain.rows]) for domain in domains]
        return [count_traffic(*part, node_of_rank).metrics() for part in own]

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        by_layer = list(pool.map(one_layer, range(plan.num_layers)))
    return tuple(
        DomainMetrics(domain=domain.domain, num_tokens=len(domain.rows), mean=mean_metrics(layers))
        for domain, layers in zip(domains, zip(*by_layer, strict=True), strict=True)
    )
