"""The examples are not part of the installed package: put their folder on the path, and make one small model."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from demo.corpus import Corpus, Quotas, build_corpus
from demo.domains import docstrings, manual, unicode_names
from demo.make_model import MadeModel, make_model
from demo.settings import ModelShape, Recipe, Settings

MICRO = Settings(
    quotas=Quotas(train=12_000, profile=1_000, heldout=1_500),
    shape=ModelShape(
        vocab_size=384,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_experts=8,
        top_k=2,
        expert_width=16,
        shard_size="60KB",
    ),
    recipe=Recipe(steps=20, sequence_tokens=64, sequences_per_domain=2),
)


@dataclass(frozen=True, kw_only=True)
class MicroModel:
    """A model of a few thousand parameters, trained for 20 steps: its folder, its text and its record."""

    folder: Path
    corpus: Corpus
    made: MadeModel
    settings: Settings


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory: pytest.TempPathFactory) -> MicroModel:
    folder = tmp_path_factory.mktemp("micro") / "model"
    domains = {"docstrings": docstrings, "manual": manual, "unicode_names": unicode_names}
    corpus = build_corpus(MICRO.quotas, domains)
    return MicroModel(folder=folder, corpus=corpus, made=make_model(corpus, folder, MICRO), settings=MICRO)
