"""Show that the demo's model has learned: its loss on unseen text beside what letter statistics alone would give."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3MoeForCausalLM

from demo.batches import Windows, pack
from demo.corpus import Request
from demo.training import token_losses

BATCH_SEQUENCES = 16
NATS_PER_BIT = 0.6931471805599453


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Losses in nats per token over held-out text.

    unigram_entropy is the least that any model reaches that knows the frequency of every token of this very text, but
    no context. busiest_expert: pairs of the busiest expert over the mean, per layer. domain_information: what the
    choice of an expert tells about the domain, in nats (mutual information), per layer.
    """

    heldout_loss: float
    unigram_entropy: float
    bits_per_byte: float
    loss_by_domain: dict[str, float]
    busiest_expert: list[float]
    domain_information: list[float]

    @property
    def has_learned(self) -> bool:
        """Whether the loss is well under the unigram entropy."""
        return self.heldout_loss < 0.8 * self.unigram_entropy


def measure(
    model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, heldout: Sequence[Request], sequence_tokens: int
) -> Learned:
    """Run `model` over the held-out requests, packed as in training."""
    windows = pack(heldout, tokenizer, sequence_tokens)
    losses, counts = {}, []
    for domain, sequences in windows.items():
        losses[domain], pairs = _run(model, sequences)
        counts.append(pairs)
    loss = torch.cat(list(losses.values())).mean().item()
    pairs_DLE = torch.stack(counts)
    total_LE = pairs_DLE.sum(dim=0)
    return Learned(
        heldout_loss=loss,
        unigram_entropy=_unigram_entropy(windows),
        bits_per_byte=loss / NATS_PER_BIT / _bytes_per_token(heldout, tokenizer),
        loss_by_domain={domain: values.mean().item() for domain, values in losses.items()},
        busiest_expert=(total_LE.amax(dim=1) / total_LE.mean(dim=1)).tolist(),
        domain_information=_mutual_information(pairs_DLE).tolist(),
    )


@torch.no_grad()
def _run(model: Qwen3MoeForCausalLM, sequences: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of `sequences`, and the pairs float32 [L, E] that each layer's experts served."""
    losses, pairs = [], []
    top_k = model.config.num_experts_per_tok
    for batch in torch.split(sequences, BATCH_SEQUENCES):
        batch_losses, router_logits = token_losses(model, batch)
        losses.append(batch_losses)
        chosen = [logits.topk(top_k).indices.flatten() for logits in router_logits]
        pairs.append(torch.stack([torch.bincount(experts, minlength=model.config.num_experts) for experts in chosen]))
    return torch.cat(losses), torch.stack(pairs).sum(dim=0).float()


def _unigram_entropy(windows: Windows) -> float:
    counts = torch.bincount(torch.cat([sequences.flatten() for sequences in windows.values()])).double()
    shares = counts[counts > 0] / counts.sum()
    return -(shares * shares.log()).sum().item()


def _mutual_information(pairs_DLE: Tensor) -> Tensor:
    """float [L]: the mutual information of domain and expert, all domains weighing the same."""
    expert_given_domain = pairs_DLE / pairs_DLE.sum(dim=2, keepdim=True)
    expert = expert_given_domain.mean(dim=0)
    # Experts that nobody uses give 0 / 0, and tell nothing.
    ratio = (expert_given_domain / expert).nan_to_num(nan=1.0)
    return (torch.xlogy(expert_given_domain, ratio)).sum(dim=2).mean(dim=0)


def _bytes_per_token(requests: Sequence[Request], tokenizer: PreTrainedTokenizerFast) -> float:
    num_tokens = sum(len(ids) for ids in tokenizer([request.text for request in requests])["input_ids"])
    return sum(len(request.text.encode()) for request in requests) / num_tokens
