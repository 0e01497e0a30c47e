"""Run the tests that prove families and formats, and write what they proved as docs/families.md.

python tests/placement/reshard/family_table.py
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from specmoe.placement.reshard.refused_families import REFUSED

HERE = Path(__file__).parent
TABLE = HERE.parents[2] / "docs" / "families.md"
TESTS = ("test_family_logits.py", "test_nested_models.py", "test_quantized_logits.py", "test_quantized.py")
HEAD = """# What reshard compiles, and what was proven

Made by `python tests/placement/reshard/family_table.py` from the tests that passed with transformers {version}: each
line is a model type of the family table and a format of its weights, each cell what a test showed for that layout.
Rank files name experts as that transformers does in memory. Floating-point models are tiny random ones of
transformers' own classes, saved with their published names; a multimodal type is the whole model. Quantized
checkpoints are moved as bytes, with every suffix of an expert. FP8, MXFP4 and compressed-tensors' FP8 and INT4 are
run too, as transformers dequantizes them on a CPU. The other formats are proven by bytes: transformers takes no GPTQ
or AWQ experts (it replaces linear layers, and its experts are one parameter a projection) and no NVFP4 checkpoint of
ModelOpt's, and dequantizes compressed-tensors' experts without their zero points and NVFP4's second scale. Every cell
includes a passed `specmoe verify --against`.

| model type | weights | layout hf | layout ranks |
|---|---|---|---|
"""
REFUSED_HEAD = """## Refused
The other model types of transformers that have experts, and why they are not compiled. A model type that stands in
neither table is refused with the names of its tensors.

| model type | why |
|---|---|
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        tests = [str(HERE / name) for name in TESTS]
        options = ["-q", f"--junitxml={results}", "-o", "junit_family=xunit1"]
        subprocess.run([sys.executable, "-m", "pytest", *options, *tests], check=True)
        cells = list(read_cells(results))
    rows = dict.fromkeys((model_type, kind) for model_type, kind, _, _ in cells)
    found = {(model_type, kind, layout): what for model_type, kind, layout, what in cells}
    lines = [
        f"| {model_type} | {kind} | {found[model_type, kind, 'hf']} | {found[model_type, kind, 'ranks']} |"
        for model_type, kind in rows
    ]
    lines += ["", REFUSED_HEAD + "\n".join(f"| {model_type} | {why} |" for model_type, why in REFUSED.items())]
    TABLE.write_text(HEAD.format(version=version("transformers")) + "\n".join(lines) + "\n")


def read_cells(results: Path) -> Iterable[list[str]]:
    for item in ElementTree.parse(results).iter("property"):
        if item.get("name") == "proven":
            yield json.loads(item.attrib["value"])


if __name__ == "__main__":
    main()
