"""Profile a model: run it over text and record which experts every token uses."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from specmoe.checkpoint import open_checkpoint
from specmoe.errors import UsageError
from specmoe.model_folder import model_folder
from specmoe.pretrained import load_tokenizer
from specmoe.profiler.batches import make_batches
from specmoe.profiler.corpus import Corpus
from specmoe.profiler.experts_interface import RoutingObserver
from specmoe.profiler.forward_pass import check_vocabulary, record_batch, run_batch
from specmoe.profiler.load_model import choose_device, load_base_model, refuse_unroutable
from specmoe.profiler.profile_limits import ProfileLimits
from specmoe.profiler.progress_bar import progress_bar
from specmoe.profiler.request_stream import RequestStream
from specmoe.profiler.routed_layers import RoutedLayers, find_routed_layers
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.profiler.routing_recorder import RoutingRecorder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLE_TOKENS = 262_144


def profile(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    device: str | torch.device | None = None,
    dtype: str = "auto",
    max_length: int | None = None,
    batch_tokens: int | None = None,
    max_tokens: int | None = None,
    sample_tokens: int = SAMPLE_TOKENS,
    domain_column: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> RoutingProfile:
    """The routing of `model` (a checkpoint folder, or a name on the Hugging Face hub) over the text in `data`.

    data: text and jsonl files (see `corpus`); a domain each, or by the jsonl key `domain_column`. A document is a
    request; one longer than `max_length` tokens (default: 2048, or what the model can take) is cut into several.
    device: default the GPU where there is one. dtype: `auto` (the checkpoint's), `float32`, `bfloat16`, `float16`.
    batch_tokens: tokens per forward pass, padding included (default 16384 on a GPU, 4096 on a CPU). max_tokens: stop
    there. sample_tokens: how many tokens of whole requests to keep one by one; the counts are over all of them.

    Raises `CheckpointError` for a folder that is no checkpoint or a model without experts, `ArtifactError` for data
    that cannot be read or is empty, `UsageError` for a wrong argument.
    """
    limits = ProfileLimits(
        max_length=max_length, batch_tokens=batch_tokens, max_tokens=max_tokens, sample_tokens=sample_tokens
    )
    chosen_device = choose_device(device)
    files = [data] if isinstance(data, str | Path) else data
    corpus = Corpus([Path(file) for file in files], domain_column=domain_column)
    folder = model_folder(model)
    fingerprint = open_checkpoint(folder).fingerprint
    refuse_unroutable(folder)
    size = corpus.check()
    tokenizer = load_tokenizer(folder)
    if size.has_messages and not tokenizer.chat_template:
        raise UsageError(f"the data has chat messages, and the tokenizer in {folder} has no chat template; give text")
    base = load_base_model(folder, chosen_device, dtype)
    layers = find_routed_layers(base, str(folder), chosen_device)
    requests = RequestStream(corpus, tokenizer, limits.length_for(base), max_tokens)
    recorder = RoutingRecorder(
        layer_ids=layers.layer_ids,
        num_logical_experts=layers.num_logical_experts,
        top_k=layers.top_k,
        sample_tokens=max(sample_tokens, requests.max_length),
        seed=seed,
    )
    with progress_bar(requests, size.num_characters, progress) as bar:
        for num_tokens in _run(base, layers, requests, recorder, limits.batch_tokens_for(chosen_device)):
            bar.update(num_tokens)
    return recorder.finish(
        vocab_size=_vocab_size(base),
        num_expert_groups=_num_expert_groups(base),
        model_fingerprint=fingerprint,
        source=f"{folder.name} over {corpus.names}",
    )


def _run(
    model: "PreTrainedModel",
    layers: RoutedLayers,
    requests: RequestStream,
    recorder: RoutingRecorder,
    batch_tokens: int,
) -> Iterator[int]:
    """Run all requests, yielding the tokens of each batch once they are recorded."""
    vocab_size = _vocab_size(model)
    with RoutingObserver(layers.modules) as observer:
        for batch in make_batches(requests, batch_tokens, requests.max_length):
            check_vocabulary(batch, vocab_size)
            run_batch(model, batch)
            record_batch(observer.take(batch.mask.size), batch, recorder, layers.num_logical_experts)
            yield len(batch.token_ids)


def _num_expert_groups(model: "PreTrainedModel") -> int:
    """How many groups of experts the router chooses among first, 1 where the configuration names none."""
    config = model.config.get_text_config()
    # DeepSeek-V2 alone looks at the method, and "greedy" passes over the groups.
    if config.model_type == "deepseek_v2" and getattr(config, "topk_method", None) == "greedy":
        return 1
    return int(getattr(config, "n_group", None) or getattr(config, "num_expert_group", None) or 1)


def _vocab_size(model: "PreTrainedModel") -> int:
    """V: the rows of the embedding, which may be more than the tokenizer's tokens."""
    embeddings: torch.nn.Module = model.get_input_embeddings()
    weight = embeddings.weight
    assert isinstance(weight, torch.Tensor)
    return len(weight)
