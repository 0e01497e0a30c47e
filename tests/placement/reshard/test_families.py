"""The family table: no model type in two rows, and the documentation speaks of all of them."""

from collections import Counter
from pathlib import Path

from specmoe.placement.reshard.families import FAMILIES

DOCUMENTED = Path(__file__).parents[3] / "docs" / "families.md"


def test_a_model_type_belongs_to_one_family() -> None:
    counts = Counter(name for family in FAMILIES for name in family.model_types)
    assert set(counts.values()) == {1}


def test_the_documented_table_has_every_model_type() -> None:
    documented = {line.split("|")[1].strip() for line in DOCUMENTED.read_text().splitlines() if line.startswith("| ")}
    known = {name for family in FAMILIES for name in family.model_types}
    assert documented - {"model type"} == known
