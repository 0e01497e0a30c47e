"""The family table: no model type in two rows, all of them documented, and none of transformers' forgotten."""

import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from specmoe.errors import CheckpointError
from specmoe.placement.reshard.families import FAMILIES, find_family
from specmoe.placement.reshard.refused_families import REFUSED

DOCUMENTED = Path(__file__).parents[3] / "docs" / "families.md"
MODELS = Path(find_spec("transformers").submodule_search_locations[0]) / "models"
KNOWN = {name for family in FAMILIES for name in family.model_types}
# Folders whose classes say "experts" or "moe" of something else.
WITHOUT_ROUTED_EXPERTS = {"vitpose_backbone": "experts of image data sets, chosen by the caller"}


def test_a_model_type_belongs_to_one_family() -> None:
    counts = Counter(name for family in FAMILIES for name in family.model_types)
    assert set(counts.values()) == {1}
    assert not KNOWN & REFUSED.keys()


def test_the_documented_table_has_every_model_type() -> None:
    documented = {line.split("|")[1].strip() for line in DOCUMENTED.read_text().splitlines() if line.startswith("| ")}
    assert documented - {"model type"} == KNOWN | REFUSED.keys()


def moe_folders() -> dict[str, set[str]]:
    """The folders of transformers whose models have experts, and the model types of each."""
    found = {}
    for path in MODELS.glob("*/modeling_*.py"):
        if re.search(r"^class \w*(Experts|MoE|MoeBlock|MoeMLP|CDMoE)\b", path.read_text(), re.MULTILINE):
            folder = path.parent
            text = "".join(config.read_text() for config in folder.glob("configuration_*.py"))
            found[folder.name] = set(re.findall(r'^    model_type = "([^"]+)"', text, re.MULTILINE))
    return found


def test_every_model_of_transformers_with_experts_is_in_the_table_or_refused_with_a_reason() -> None:
    folders = moe_folders()
    assert len(folders) > 40
    unknown = {name for name, types in folders.items() if not types & (KNOWN | REFUSED.keys())}
    assert unknown - WITHOUT_ROUTED_EXPERTS.keys() == set()


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_refused_model_type_says_why(model_type) -> None:
    with pytest.raises(CheckpointError, match=f"'{model_type}', which is not compiled: {REFUSED[model_type]}"):
        find_family({"model_type": model_type}, "a folder", [])


def test_a_multimodal_model_without_a_row_is_read_as_its_language_model() -> None:
    config = {"model_type": "internvl", "text_config": {"model_type": "qwen3_moe"}}
    assert find_family(config, "a folder", []).name == "qwen"
    refused = {"model_type": "internvl", "text_config": {"model_type": "jetmoe"}}
    with pytest.raises(CheckpointError, match="'jetmoe', which is not compiled"):
        find_family(refused, "a folder", [])
