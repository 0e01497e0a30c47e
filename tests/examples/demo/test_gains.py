from dataclasses import replace
from typing import Any

import pytest

from demo.comparison import Comparison
from demo.gains import Gains

SAME = Comparison(largest_difference=1e-6, largest_logit=10.0, equal_tokens=9, all_tokens=9, equal_texts=2, all_texts=2)
MODEL = {
    "parameters": 1000,
    "tokens": 5000,
    "seconds": 2.0,
    "heldout_loss": 3.0,
    "unigram_entropy": 6.0,
    "bits_per_byte": 1.5,
}


def gains(copies: float = 1.0, imbalance: float = 1.1, comparison: Comparison = SAME) -> Gains:
    """A result in which linear sends 2 copies, round_robin 1.9 and eplb 1.8 at linear's imbalance of 1.2."""
    measured = {"a.plan": (copies, imbalance), "linear": (2.0, 1.2), "round_robin": (1.9, 1.2), "eplb": (1.8, 1.0)}
    results: list[dict[str, Any]] = [
        {
            "name": name,
            "mean": {"remote_copies_per_token": copies, "load_imbalance": load, "local_activation_rate": 0.25},
        }
        for name, (copies, load) in measured.items()
    ]
    evaluation = {"trace": {"num_tokens": 1234, "num_requests": 5}, "results": results}
    return Gains.of(evaluation, {"a.plan": "specmoe"}, MODEL, comparison, {"solve": 1.234})


def test_a_good_result_has_no_shortfall() -> None:
    assert gains().shortfalls() == []


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (gains(copies=1.85), "specmoe sends 1.850 remote copies per token, no fewer than eplb"),
        (gains(imbalance=1.3), "specmoe has a load imbalance of 1.300, linear's is 1.200"),
        (gains(comparison=replace(SAME, equal_tokens=8)), "the compiled model's output differs from the original's"),
        (gains(comparison=replace(SAME, equal_texts=1)), "the compiled model's output differs from the original's"),
        (gains(comparison=replace(SAME, largest_difference=0.1)), "output differs"),
    ],
    ids=["copies", "imbalance", "token", "text", "logits"],
)
def test_a_shortfall_is_said(found: Gains, sentence: str) -> None:
    (shortfall,) = found.shortfalls()
    assert sentence in shortfall


def test_the_table_names_every_placement_and_its_gain() -> None:
    lines = gains().to_markdown().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:6]] == ["linear", "round_robin", "eplb", "specmoe"]
    assert "-50%" in lines[5]
    assert "identical" in gains().to_markdown()


def test_the_json_holds_the_same_numbers() -> None:
    written = gains().to_json()
    assert written["placements"]["specmoe"]["remote_copies_per_token"] == 1.0
    assert written["heldout"] == {"tokens": 1234, "requests": 5}
    assert written["output"]["identical"]
    assert written["seconds"] == {"solve": 1.2}
