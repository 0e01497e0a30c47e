"""Make the demo's text and train its model: `TEXT/{train,profile,heldout}.jsonl` and an ordinary checkpoint folder."""

from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast, Qwen3MoeForCausalLM

from demo.batches import pack
from demo.corpus import Corpus, build_corpus, write_requests
from demo.learned import Learned, measure
from demo.model import new_model
from demo.precision import fastest_matmul_dtype
from demo.settings import Settings
from demo.tokenizer import train_tokenizer
from demo.training import TrainingRecord, train


@dataclass(frozen=True, kw_only=True)
class MadeModel:
    """What came out of training, in numbers."""

    parameters: int
    training: TrainingRecord
    learned: Learned

    def to_json(self) -> dict[str, object]:
        """Everything but the loss of every step."""
        training = {key: value for key, value in asdict(self.training).items() if key != "losses"}
        return {
            "parameters": self.parameters,
            "steps": len(self.training.losses),
            **training,
            "tokens_per_second": round(self.training.tokens / self.training.seconds),
            **asdict(self.learned),
        }


def write_corpus(folder: Path, settings: Settings) -> Corpus:
    """Build the text and write one jsonl file per split into the existing `folder`."""
    corpus = build_corpus(settings.quotas)
    for split, requests in corpus.items():
        write_requests(folder / f"{split}.jsonl", requests)
    return corpus


def make_model(corpus: Corpus, folder: Path, settings: Settings) -> MadeModel:
    """Train tokenizer and model on the training split, save both to `folder`, and measure them on held-out text."""
    shape, recipe = settings.shape, settings.recipe
    tokenizer = train_tokenizer((request.text for request in corpus["train"]), shape.vocab_size)
    model = new_model(shape, end_of_text=tokenizer.eos_token_id, seed=recipe.seed)
    windows = pack(corpus["train"], tokenizer, recipe.sequence_tokens)
    training = train(model, windows, recipe, fastest_matmul_dtype())
    save(model, tokenizer, folder, shape.shard_size)
    return MadeModel(
        parameters=model.num_parameters(),
        training=training,
        learned=measure(model, tokenizer, corpus["heldout"], recipe.sequence_tokens),
    )


def save(model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, shard_size: str) -> None:
    """Write an ordinary Hugging Face checkpoint, its weights in several safetensors files."""
    model.save_pretrained(folder, max_shard_size=shard_size)
    tokenizer.save_pretrained(folder)
