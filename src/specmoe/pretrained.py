"""Read a checkpoint's configuration and tokenizer with transformers, and turn what it raises into one sentence.

Code that a checkpoint brings along is never run, and nothing is downloaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specmoe.errors import CheckpointError, SpecmoeError
from specmoe.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# How to load so that `check_loading_report` can name what is wrong.
LOADING = {"output_loading_info": True, "ignore_mismatched_sizes": True, "local_files_only": True}
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


class UnknownModelError(CheckpointError):
    """The installed transformers has no code for this kind of model."""


@contextmanager
def reading_with_transformers(problem: str) -> Iterator[None]:
    """Within it transformers is quiet, and what it raises for files that it cannot use becomes a `CheckpointError`.

    problem: the sentence up to its reason, such as "FOLDER cannot be loaded".
    """
    # transformers and its readers check files as they go; what is wrong with one ends in any of these.
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    known = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError)
    try:
        with quiet_transformers():
            yield
    except SpecmoeError:
        raise
    except (*known, StrictDataclassError, SafetensorError) as error:
        raise CheckpointError(f"{problem}: {_first_line(error)}") from error


def read_config(folder: Path) -> "PreTrainedConfig":
    """The configuration in `folder`; raises `UnknownModelError` for a `model_type` that transformers does not have,
    and `CheckpointError` for one that it cannot read."""
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    with reading_with_transformers(f"{folder} has a config that transformers cannot read"):
        model_type = PreTrainedConfig.get_config_dict(folder, local_files_only=True)[0].get("model_type")
        if model_type is not None and model_type not in CONFIG_MAPPING:
            raise UnknownModelError(
                f"the installed transformers has no model of type {model_type!r}, which {folder / 'config.json'} asks "
                "for; install a release that has it, and note that code inside a checkpoint is never run"
            )
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, **_LOCAL)
    return config


def generating_class(config: "PreTrainedConfig") -> Any:
    """The class of transformers' that generates text from `config`, a multimodal model's with all its towers.

    Raises `UnknownModelError` where there is none.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    # Some multimodal types also name a class for the language model alone, which cannot be built from their config.
    for mapping in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        if type(config) in mapping:
            return mapping[type(config)]
    raise UnknownModelError(f"transformers has no model that generates text for the model_type {config.model_type!r}")


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in `folder`; raises `CheckpointError` where there is none that transformers can read."""
    from transformers import AutoTokenizer

    with reading_with_transformers(f"{folder} has no tokenizer that transformers can load"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **_LOCAL)
    # Where the files are missing transformers may make up an empty tokenizer, for which every text is nothing.
    if not tokenizer("a 1", add_special_tokens=False)["input_ids"]:
        raise CheckpointError(f"{folder} has no tokenizer files (tokenizer.json); put the model's own there")
    return tokenizer


def check_loading_report(folder: Path, report: dict[str, Any]) -> None:
    """Raise `CheckpointError` unless every tensor of the model was found; report: transformers' loading info.

    transformers fills a tensor that it does not find with random numbers and goes on; that must not happen. It does
    so for one of another shape too where it is told to (`LOADING`), and only then says which.
    """
    for kind, problem in (("missing_keys", "lacks"), ("mismatched_keys", "has the wrong shape for")):
        if report[kind]:
            first = sorted(key if isinstance(key, str) else key[0] for key in report[kind])[0]
            raise CheckpointError(f"{folder} {problem} {len(report[kind])} tensors of the model, such as {first}")
    if report["error_msgs"]:
        raise CheckpointError(f"{folder} cannot be loaded: {report['error_msgs'][0]}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
