import torch
from torch import Tensor, nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from demo import padded_experts


def experts(implementation: str) -> nn.Module:
    config = Qwen3MoeConfig(hidden_size=16, moe_intermediate_size=8, num_experts=6, num_experts_per_tok=2)
    config._experts_implementation = implementation
    module = Qwen3MoeExperts(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    return module


def run(implementation: str, hidden: Tensor, index: Tensor, weights: Tensor) -> list[Tensor]:
    """The output and the gradients of a module that runs its experts so."""
    module = experts(implementation)
    hidden, weights = hidden.clone().requires_grad_(), weights.clone().requires_grad_()
    output = module(hidden, index, weights)
    (output * torch.arange(output.numel()).view_as(output).cos()).sum().backward()
    return [output, hidden.grad, weights.grad, *(parameter.grad for parameter in module.parameters())]


def test_output_and_gradients_equal_the_stock_implementation() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(300, 16, generator=generator)
    # Expert 5 gets no token, expert 0 more rows than one block holds.
    index = torch.rand(300, 5, generator=generator).mul(torch.tensor([9.0, 1, 1, 1, 1])).topk(2).indices
    weights = torch.rand(300, 2, generator=generator)
    expected = run("eager", hidden, index, weights)
    found = run(padded_experts.register(), hidden, index, weights)
    assert torch.bincount(index.flatten(), minlength=6)[0] > padded_experts.ROW_MULTIPLE
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
