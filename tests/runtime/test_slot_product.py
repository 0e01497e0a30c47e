"""The grouped product and the product slot by slot are the same function, for every kind of experts module."""

import types

import pytest
import torch

from specmoe.runtime import slot_product

HIDDEN, INNER, SLOTS = 16, 24, 4


def experts_module(*, has_gate, has_bias, is_transposed, post_norm):
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Module()
    wide = 2 * INNER if has_gate else INNER
    shapes = {"gate_up_proj" if has_gate else "up_proj": (wide, HIDDEN), "down_proj": (HIDDEN, INNER)}
    for name, (rows, columns) in shapes.items():
        shape = (SLOTS, columns, rows) if is_transposed else (SLOTS, rows, columns)
        weight = torch.randn(shape, generator=generator).to(torch.bfloat16)
        setattr(module, name, torch.nn.Parameter(weight, requires_grad=False))
        if has_bias:
            bias = torch.randn((SLOTS, rows), generator=generator).to(torch.bfloat16)
            setattr(module, f"{name}_bias", torch.nn.Parameter(bias, requires_grad=False))
    module.has_gate, module.has_bias, module.is_transposed = has_gate, has_bias, is_transposed
    module.act_fn = torch.nn.functional.silu
    if has_gate:
        module._apply_gate = types.MethodType(lambda self, x: self.act_fn(x[..., ::2]) * x[..., 1::2], module)
    if post_norm:
        module.has_post_expert_norm = True
        module.post_expert_norm = lambda x: x * 2
    return module


KINDS = {
    "plain": {"has_gate": True, "has_bias": False, "is_transposed": False, "post_norm": False},
    "biased and transposed": {"has_gate": True, "has_bias": True, "is_transposed": True, "post_norm": False},
    "ungated": {"has_gate": False, "has_bias": True, "is_transposed": False, "post_norm": False},
    "with a norm after it": {"has_gate": True, "has_bias": False, "is_transposed": False, "post_norm": True},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [0, 0, 9, 0], [0, 0, 0, 0]], ids=str)
def test_grouped_and_slot_by_slot_agree(kind, counts):
    experts = experts_module(**kind)
    offsets = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    rows = torch.randn((sum(counts), HIDDEN), generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    one_by_one = slot_product._slot_by_slot(experts, rows, offsets.tolist())
    if sum(counts):
        grouped = slot_product._grouped(experts, rows, offsets)
        torch.testing.assert_close(grouped, one_by_one, rtol=0.05, atol=0.5)
    assert torch.equal(slot_product.slot_product(experts, rows, offsets), one_by_one), "on a CPU slot by slot"


def test_a_row_goes_through_the_expert_of_its_slot():
    experts = experts_module(**KINDS["biased and transposed"]).float()
    row = torch.randn((1, HIDDEN), generator=torch.Generator().manual_seed(1))
    out = slot_product.slot_product(experts, row, torch.tensor([0, 0, 0, 1, 1], dtype=torch.int32))
    inner = row @ experts.gate_up_proj[2] + experts.gate_up_proj_bias[2]
    expected = (
        torch.nn.functional.silu(inner[:, ::2]) * inner[:, 1::2] @ experts.down_proj[2] + experts.down_proj_bias[2]
    )
    torch.testing.assert_close(out, expected)
