"""Placement methods from the literature, as solvers of the product's signature, to compare with; not in the product."""

from published.exflow import exflow
from published.grace import grace
from published.moetuner import moetuner
from published.occult import occult
from published.sem_moe import sem_moe

METHODS = {"sem_moe": sem_moe, "moetuner": moetuner, "exflow": exflow, "occult": occult, "grace": grace}
CAN_REPLICATE = frozenset({"grace"})
