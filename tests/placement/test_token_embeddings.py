"""A checkpoint's token embeddings: the right tensor, every stored dtype, projected alike, and refusals."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from specmoe.errors import CheckpointError
from specmoe.placement import token_embeddings
from specmoe.placement.token_embeddings import TokenEmbeddings


def checkpoint(folder, **tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"}))
    save_file(tensors, folder / "model.safetensors")
    return folder


def unit(rows):
    rows = rows - rows.mean(axis=0)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_those_of_the_checkpoint_about_their_mean(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(token_embeddings, "_PART_BYTES", 100)
    weight = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[4], weight[7] = 0, float("nan")
    folder = checkpoint(
        tmp_path / "model",
        **{
            "a.weight": torch.zeros(3),
            "model.embed_tokens.weight": weight,
            "model.layers.9.embed_tokens.weight": torch.ones(30, 8),
            "audio.embed_tokens.weight": torch.ones(5, 8),
        },
    )
    found = TokenEmbeddings.of(folder)
    known = [row for row in range(30) if row not in (4, 7)]
    assert not found.rows[[4, 7]].any()
    np.testing.assert_allclose(found.rows[known], unit(weight[known].float().numpy()), atol=1e-5)
    assert len(found.model_fingerprint) == 64


def test_wide_rows_keep_their_angles(tmp_path):
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((60, 8)) @ rng.standard_normal((8, 1000))).astype(np.float32)
    rows = TokenEmbeddings.of(checkpoint(tmp_path / "model", **{"wte.weight": torch.from_numpy(weight)})).rows
    assert rows.shape == (60, 256)
    exact = unit(weight) @ unit(weight).T
    assert np.abs(rows @ rows.T - exact).max() < 0.3
    assert np.abs(rows @ rows.T - exact).mean() < 0.06


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lm_head.weight": torch.ones(4, 4)}, "has no token embedding"),
        ({"embed_tokens.weight": torch.ones(4)}, "has no token embedding"),
        ({"embed_tokens.weight": torch.ones(4, 4, dtype=torch.int8)}, "is I8, one of F32, F16, BF16 was expected"),
    ],
)
def test_a_checkpoint_without_readable_embeddings_is_refused(tmp_path, tensors, message):
    with pytest.raises(CheckpointError, match=message):
        TokenEmbeddings.of(checkpoint(tmp_path / "model", **tensors))
