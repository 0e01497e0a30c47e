"""Build the transformers model on the meta device, give its experts modules one process's slots, and fill it."""

from collections.abc import Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, cast

import torch

from specmoe.pretrained import LOADING, UnknownModelError, check_loading_report, read_config, reading_with_transformers
from specmoe.runtime.capacity import CapacityPolicy
from specmoe.runtime.compiled_files import CompiledFiles
from specmoe.runtime.expert_runtime import ExpertRuntime
from specmoe.runtime.experts_function import IMPLEMENTATION, register_experts_function
from specmoe.runtime.token_homes import TokenHomes
from specmoe.runtime.tp_layer import split_model
from specmoe.runtime.workers import Workers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GENERATION_CONFIG_FILE = "generation_config.json"


def build_model(
    files: CompiledFiles, workers: Workers, dtype: torch.dtype | None, capacity: CapacityPolicy | None
) -> "PreTrainedModel":
    """This process's model, on `workers.device`; expert weights of other processes are never allocated.

    Raises `UnknownModelError` when transformers has no such model and `CheckpointError` when a tensor is missing or
    does not fit, or the configuration cannot be read.
    """
    register_experts_function()
    experts = files.expert_tensors(workers.own_ranks)
    model = _fill(files, files.shared_tensors() | experts, experts, dtype)
    model = model.to(workers.device).requires_grad_(False).eval()
    modules = [model.get_submodule(name) for name in files.manifest.expert_modules]
    hidden_size = model.config.get_text_config().hidden_size
    blocks = [model.get_submodule(name.rpartition(".")[0]) for name in files.manifest.expert_modules]
    runtime = ExpertRuntime(files.plan, workers, modules, blocks, hidden_size, capacity)
    if isinstance(runtime.homes, TokenHomes) and workers.world_size > 1:
        runtime.shuffle = split_model(model, workers, runtime.homes, files.plan.layer_ids.tolist())
    _attach(model, runtime, modules)
    return cast("PreTrainedModel", model)


def _fill(
    files: CompiledFiles, tensors: dict[str, torch.Tensor], experts: dict[str, torch.Tensor], dtype: torch.dtype | None
) -> Any:
    from transformers import GenerationConfig

    config = read_config(files.folder)
    model_class = _model_class(files, config)
    sized_class = _with_slots(model_class, experts)
    with reading_with_transformers(f"{files.folder} cannot be loaded"):
        model, report = sized_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype="auto" if dtype is None else dtype,
            experts_implementation=IMPLEMENTATION,
            **LOADING,
        )
    check_loading_report(files.folder, report)
    # The class that users know; the one above only gave the experts their sizes.
    model.__class__ = model_class
    if GENERATION_CONFIG_FILE in files.manifest.files:
        with reading_with_transformers(f"{files.folder / GENERATION_CONFIG_FILE} cannot be read"):
            model.generation_config = GenerationConfig.from_pretrained(files.folder, local_files_only=True)
    return model


def _model_class(files: CompiledFiles, config: Any) -> Any:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise UnknownModelError(
            f"transformers has no causal language model for {files.folder / 'config.json'} (model_type "
            f"{config.model_type!r})"
        ) from None


def _with_slots(model_class: Any, experts: dict[str, torch.Tensor]) -> Any:
    """A subclass of `model_class` whose experts parameters have the shapes of `experts`, by parameter name."""

    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        for name, tensor in experts.items():
            module_name, _, parameter_name = name.rpartition(".")
            module = self.get_submodule(module_name)
            made = getattr(module, parameter_name)
            empty = torch.empty(tensor.shape, dtype=made.dtype, device="meta")
            setattr(module, parameter_name, torch.nn.Parameter(empty, requires_grad=False))

    namespace = {"__init__": wraps(model_class.__init__)(init), "__module__": model_class.__module__}
    return type(model_class.__name__, (model_class,), namespace)


def _attach(model: Any, runtime: ExpertRuntime, modules: Sequence[torch.nn.Module]) -> None:
    for layer, module in zip(runtime.layers, modules, strict=True):
        # A plain attribute: the layer is no torch module and holds the module that it belongs to.
        object.__setattr__(module, "specmoe_layer", layer)
    model.specmoe = runtime
    model.register_forward_pre_hook(runtime.begin_forward, with_kwargs=True)
    generate = model.generate

    @wraps(generate)
    def generate_in_lock_step(*args: Any, **kwargs: Any) -> Any:
        with runtime.lock_step():
            return generate(*args, **kwargs)

    object.__setattr__(model, "generate", generate_in_lock_step)
