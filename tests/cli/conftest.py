"""A tiny model with a tokenizer, compiled for two ranks; and the command line, run in this process."""

import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A random Qwen3-MoE of 8 experts and 2 layers whose tokenizer knows single letters."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("tiny") / "model"
    config = Qwen3MoeConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=64,
        intermediate_size=40,
        moe_intermediate_size=24,
        num_experts=8,
        num_experts_per_tok=3,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    vocabulary = {letter: number for number, letter in enumerate(["?", *string.ascii_letters, " ", "."])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def compiled_tiny(tiny_checkpoint, tmp_path_factory, random_plan) -> Path:
    """`tiny_checkpoint` compiled for two ranks, with replicas."""
    import specmoe

    plan = random_plan(
        np.random.default_rng(0),
        num_experts=8,
        ranks_per_node=(2,),
        top_k=3,
        extra_slots=(1, 2),
        replica_choice="cover",
        layer_ids=(0, 1),
    )
    out = tmp_path_factory.mktemp("compiled") / "out"
    specmoe.reshard(tiny_checkpoint, plan, out)
    return out


@pytest.fixture
def command_line(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """`command_line("verify", path)`: what `specmoe verify path` exits with and prints on stdout and stderr."""
    from specmoe.cli.main import main

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["specmoe", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run
