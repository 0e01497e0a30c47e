"""Model types of transformers with experts that the family table does not hold, and why."""

from collections.abc import Mapping

_ENCODER_DECODER = "it is an encoder-decoder with experts in both halves"
_INTERLEAVED = "transformers interleaves its experts' rows anew on loading, and no copy of bytes does that"

REFUSED: Mapping[str, str] = {
    "dbrx": "all its experts lie in one matrix per projection, which transformers does not take apart",
    "diffusion_gemma": "it denoises blocks of tokens, with one set of experts for encoder and decoder",
    "doge": "its experts are single rows that product keys look up",
    "ernie4_5_vl_moe": "each layer has two sets of experts, for text and for images",
    "inkling_mm_model": _INTERLEAVED,
    "inkling_text": _INTERLEAVED,
    "inkling2": _INTERLEAVED,
    "inkling2_text": _INTERLEAVED,
    "jetmoe": "its attention heads are experts too, with a router of their own",
    "nllb-moe": _ENCODER_DECODER,
    "openai_privacy_filter": "it classifies tokens and generates none",
    "switch_transformers": _ENCODER_DECODER,
}
