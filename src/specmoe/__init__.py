"""specmoe: place the experts of a mixture-of-experts model so that tokens travel less, and run it, losslessly.

The five stages, as functions: `profile` or `import_record`, `solve`, `evaluate` with `report` and `drift`, `reshard`
with `verify` or `export_plan`, and `load`. They are imported on first use, so that solving needs neither torch nor
transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specmoe.placement.drift.drift import drift as drift
    from specmoe.placement.evaluate import evaluate as evaluate
    from specmoe.placement.export.export_plan import export_plan as export_plan
    from specmoe.placement.plan import PlacementPlan as PlacementPlan
    from specmoe.placement.report.report import report as report
    from specmoe.placement.request_router import RequestRouter as RequestRouter
    from specmoe.placement.reshard.compile import reshard as reshard
    from specmoe.placement.solve import solve as solve
    from specmoe.placement.topology import Topology as Topology
    from specmoe.profiler.import_record import import_record as import_record
    from specmoe.profiler.model_facts import ModelFacts as ModelFacts
    from specmoe.profiler.profile_model import profile as profile
    from specmoe.profiler.routing_profile import RoutingProfile as RoutingProfile
    from specmoe.runtime.capacity import CapacityPolicy as CapacityPolicy
    from specmoe.runtime.load import load as load
    from specmoe.runtime.verify import verify as verify

    __version__: str

_HOME_OF = {
    "CapacityPolicy": "specmoe.runtime.capacity",
    "ModelFacts": "specmoe.profiler.model_facts",
    "PlacementPlan": "specmoe.placement.plan",
    "RequestRouter": "specmoe.placement.request_router",
    "RoutingProfile": "specmoe.profiler.routing_profile",
    "Topology": "specmoe.placement.topology",
    "drift": "specmoe.placement.drift.drift",
    "evaluate": "specmoe.placement.evaluate",
    "export_plan": "specmoe.placement.export.export_plan",
    "import_record": "specmoe.profiler.import_record",
    "load": "specmoe.runtime.load",
    "profile": "specmoe.profiler.profile_model",
    "report": "specmoe.placement.report.report",
    "reshard": "specmoe.placement.reshard.compile",
    "solve": "specmoe.placement.solve",
    "verify": "specmoe.runtime.verify",
}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("specmoe")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'specmoe' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
