"""Build the transformers model on the meta device, give its experts modules one process's slots, and fill it."""

import re
from collections.abc import Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, cast

import torch

from specmoe.errors import UsageError
from specmoe.pretrained import LOADING, check_loading_report, generating_class, read_config, reading_with_transformers
from specmoe.runtime.adopt_experts import adopt_experts, may_choose_none
from specmoe.runtime.attention_split import own_slices
from specmoe.runtime.capacity import CapacityPolicy
from specmoe.runtime.compiled_files import CompiledFiles
from specmoe.runtime.expert_parameters import ExpertParameters
from specmoe.runtime.expert_runtime import ExpertRuntime
from specmoe.runtime.experts_function import IMPLEMENTATION, register_experts_function
from specmoe.runtime.quantization_config import forget_quantization
from specmoe.runtime.static_decode import StaticDecode
from specmoe.runtime.stored_weights import dequantize_shared, fp8_block
from specmoe.runtime.token_homes import TokenHomes
from specmoe.runtime.tp_layer import shuffle_tokens, split_heads
from specmoe.runtime.workers import Workers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GENERATION_CONFIG_FILE = "generation_config.json"


def build_model(
    files: CompiledFiles,
    workers: Workers,
    dtype: torch.dtype | None,
    capacity: CapacityPolicy | None,
    decode: StaticDecode | None = None,
) -> "PreTrainedModel":
    """This process's model, on `workers.device`; weights of other processes are neither read nor allocated.

    Raises `UnknownModelError` when transformers has no such model and `CheckpointError` when a tensor is missing or
    does not fit, or the configuration cannot be read.
    """
    register_experts_function()
    experts = files.expert_parameters(workers.own_ranks)
    has_own_heads = files.plan.attention == "tp" and workers.world_size > 1
    model = _fill(files, experts, workers if has_own_heads else None, dtype)
    experts.place(model, workers.device)
    model = model.to(workers.device).requires_grad_(False).eval()
    modules = [model.get_submodule(name) for name in files.manifest.expert_modules]
    blocks = [model.get_submodule(name.rpartition(".")[0]) for name in files.manifest.expert_modules]
    for block, module in zip(blocks, modules, strict=True):
        adopt_experts(block, module)
        if capacity is not None and may_choose_none(module):
            raise UsageError(
                f"a capacity was given, and a token of {type(model).__name__} may choose fewer than {files.plan.top_k} "
                "experts, so that no mean load is known; load without one"
            )
    hidden_size = model.config.get_text_config().hidden_size
    runtime = ExpertRuntime(files.plan, workers, modules, blocks, hidden_size, capacity, decode)
    if isinstance(runtime.homes, TokenHomes) and has_own_heads:
        runtime.shuffle = shuffle_tokens(model, workers, runtime.homes, files.plan)
    _attach(model, runtime, modules)
    return cast("PreTrainedModel", model)


def _fill(files: CompiledFiles, experts: ExpertParameters, own_heads: Workers | None, dtype: torch.dtype | None) -> Any:
    """The model on the CPU, its expert parameters empty; own_heads: whose share of the heads it has, None: all."""
    from transformers import GenerationConfig

    config = read_config(files.folder)
    model_class = generating_class(config)
    dtype = dtype or _stated_dtype(config) or experts.dtype or torch.bfloat16
    shared = _without_idle_experts(files.shared_tensors(), files.manifest.expert_modules)
    tensors = dequantize_shared(shared, fp8_block(files.quantization), dtype)
    # What was quantized is not any more.
    forget_quantization(config)
    if own_heads is not None:
        tensors = own_slices(tensors, own_heads)
    # Of one element each, whatever their shape: the experts' weights go straight to their place.
    empty = {name: torch.empty(1, dtype=dtype).expand(shape) for name, shape in experts.shapes.items()}
    sized_class = _with_sizes(model_class, experts.shapes, own_heads)
    with reading_with_transformers(f"{files.folder} cannot be loaded"):
        model, report = sized_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors | empty,
            dtype=dtype,
            experts_implementation=IMPLEMENTATION,
            **LOADING,
        )
    check_loading_report(files.folder, report)
    # The class that users know; the one above only gave the parameters their sizes.
    model.__class__ = model_class
    if GENERATION_CONFIG_FILE in files.manifest.files:
        with reading_with_transformers(f"{files.folder / GENERATION_CONFIG_FILE} cannot be read"):
            model.generation_config = GenerationConfig.from_pretrained(files.folder, local_files_only=True)
    return model


def _without_idle_experts(tensors: Mapping[str, torch.Tensor], modules: Sequence[str]) -> dict[str, torch.Tensor]:
    """`tensors` without weights stored for experts of `modules` that compute nothing: there is no slot for those."""
    names = re.compile(f"(?:{'|'.join(map(re.escape, modules))})" + r"\.\d+\..+")
    return {name: tensor for name, tensor in tensors.items() if not names.fullmatch(name)}


def _stated_dtype(config: Any) -> torch.dtype | None:
    stated = config.dtype
    return getattr(torch, stated, None) if isinstance(stated, str) else stated


def _with_sizes(model_class: Any, shapes: Mapping[str, Sequence[int]], own_heads: Workers | None) -> Any:
    """A subclass of `model_class` whose experts parameters have these `shapes`, by name, and its attention the heads
    of `own_heads`."""

    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        for name, shape in shapes.items():
            module_name, _, parameter_name = name.rpartition(".")
            module = self.get_submodule(module_name)
            made = getattr(module, parameter_name)
            empty = torch.empty(tuple(shape), dtype=made.dtype, device="meta")
            setattr(module, parameter_name, torch.nn.Parameter(empty, requires_grad=False))
        if own_heads is not None:
            split_heads(self, own_heads)

    namespace = {"__init__": wraps(model_class.__init__)(init), "__module__": model_class.__module__}
    return type(model_class.__name__, (model_class,), namespace)


def _attach(model: Any, runtime: ExpertRuntime, modules: Sequence[torch.nn.Module]) -> None:
    for layer, module in zip(runtime.layers, modules, strict=True):
        # A plain attribute: the layer is no torch module and holds the module that it belongs to.
        object.__setattr__(module, "specmoe_layer", layer)
    model.specmoe = runtime
    model.register_forward_pre_hook(runtime.begin_forward, with_kwargs=True)
    head = model.get_output_embeddings()
    if head is not None:
        # The last position of each prompt is a strided view, which torch multiplies row by row on a CPU where the
        # weight needs no gradient: in bfloat16 hundreds of times slower.
        head.register_forward_pre_hook(_contiguous)
    generate = model.generate

    @wraps(generate)
    def generate_in_lock_step(*args: Any, **kwargs: Any) -> Any:
        inputs = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        with runtime.lock_step():
            # A process without requests; transformers knows no such batch.
            if isinstance(inputs, torch.Tensor) and len(inputs) == 0:
                return inputs
            return generate(*args, **kwargs)

    object.__setattr__(model, "generate", generate_in_lock_step)


def _contiguous(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """A forward pre-hook: the first argument laid out in one piece."""
    return args[0].contiguous(), *args[1:]
