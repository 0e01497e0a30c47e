"""All that a run over a corpus needs, checked and loaded."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from specmoe.artifact import canonical_json
from specmoe.checkpoint import open_checkpoint
from specmoe.errors import UsageError
from specmoe.model_folder import model_folder
from specmoe.pretrained import load_tokenizer, read_config
from specmoe.profiler.corpus import Corpus, CorpusSize
from specmoe.profiler.load_model import choose_device, input_device, load_model, refuse_unroutable
from specmoe.profiler.processes import Processes
from specmoe.profiler.profile_options import ProfileOptions
from specmoe.profiler.request_stream import RequestStream
from specmoe.profiler.routed_layers import RoutedLayers, find_routed_layers
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.profiler.routing_recorder import RoutingRecorder
from specmoe.routing_config import num_expert_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A loaded model, the requests to run through it, and the options to do so."""

    folder: Path
    model_fingerprint: str
    tokenizer_digest: str
    model: "PreTrainedModel"
    layers: RoutedLayers
    corpus: Corpus
    corpus_size: CorpusSize
    requests: RequestStream
    options: ProfileOptions

    @property
    def device(self) -> torch.device:
        """Where the model takes its input."""
        return input_device(self.model)

    @property
    def batch_tokens(self) -> int:
        return self.options.batch_tokens_for(self.device)

    @property
    def vocab_size(self) -> int:
        """V: the rows of the embedding, which may be more than the tokenizer's tokens."""
        embeddings: torch.nn.Module = self.model.get_input_embeddings()
        weight = embeddings.weight
        assert isinstance(weight, torch.Tensor)
        return len(weight)

    def job(self) -> dict[str, Any]:
        """What another run must have in common with this one to come to the same passes, by name."""
        options = self.options
        return {
            "model": self.model_fingerprint,
            "tokenizer": self.tokenizer_digest,
            "data": self.corpus_size.digest,
            "dtype": options.dtype,
            "device": self.device.type,
            "max_length": self.requests.max_length,
            "batch_tokens": self.batch_tokens,
            "max_tokens": options.max_tokens,
            "sample_tokens": options.sample_tokens,
            "generate": options.generate,
            "weights": list(options.weights),
            "seed": options.seed,
        }

    def new_recorder(self) -> RoutingRecorder:
        """A recorder for this run that has seen nothing; its sample can hold the longest request."""
        return RoutingRecorder(
            layer_ids=self.layers.layer_ids,
            num_logical_experts=self.layers.num_logical_experts,
            top_k=self.layers.top_k,
            sample_tokens=max(self.options.sample_tokens, self.requests.max_length + self.options.num_generated),
            seed=self.options.seed,
            domains=self.corpus.domains,
            keeps_phases=self.options.num_generated > 0,
        )

    def finish(self, recorder: RoutingRecorder, *, stopped: bool) -> RoutingProfile:
        """The profile of what `recorder` saw; `stopped`: it was not the whole corpus."""
        num_prompt_tokens = recorder.num_tokens - recorder.num_decode_tokens
        expected = self.requests.expected_tokens(self.corpus_size.characters_of_file)
        return recorder.finish(
            vocab_size=self.vocab_size,
            num_expert_groups=num_expert_groups(self.model.config.to_dict(), str(self.folder)),
            model_fingerprint=self.model_fingerprint,
            source=f"{self.folder.name} over {self.corpus.names}",
            seen_share=round(min(1.0, num_prompt_tokens / max(1, expected)), 4) if stopped else None,
        )


def prepare_run(model: str | Path, data: Sequence[Path], options: ProfileOptions, processes: Processes) -> PreparedRun:
    """Check everything that can be checked, cheap things first, then load the model; raises as `profile` does."""
    if options.device_map is not None and processes.count > 1:
        raise UsageError("device_map spreads the model over the devices of one process; start one process, not several")
    device = choose_device(options.device, processes.local_number)
    corpus = Corpus(data, domain_column=options.domain_column, prompts_only=options.num_generated > 0)
    folder = model_folder(model)
    fingerprint = open_checkpoint(folder).fingerprint
    refuse_unroutable(folder)
    size = corpus.check(each=bool(options.weights))
    tokenizer = load_tokenizer(folder)
    if size.has_messages and not tokenizer.chat_template:
        raise UsageError(f"the data has chat messages, and the tokenizer in {folder} has no chat template; give text")
    requests = RequestStream(
        corpus,
        tokenizer,
        options.length_for(read_config(folder)),
        options.max_tokens,
        weights=options.weights,
        to_answer=options.num_generated > 0,
    )
    loaded = load_model(folder, device, options)
    return PreparedRun(
        folder=folder,
        model_fingerprint=fingerprint,
        tokenizer_digest=_digest_of(tokenizer),
        model=loaded,
        layers=find_routed_layers(loaded, str(folder), input_device(loaded)),
        corpus=corpus,
        corpus_size=size,
        requests=requests,
        options=options,
    )


def _digest_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """SHA-256 of the tokenizer's vocabulary and its chat template."""
    parts = {"vocabulary": tokenizer.get_vocab(), "template": tokenizer.chat_template}
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()
