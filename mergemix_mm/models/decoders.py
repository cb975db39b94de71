"""The decoder of a model of transformers: the layers that read its text, and what they make of embeddings."""

from typing import Any

from torch import nn


def find_decoder(model: nn.Module) -> tuple[str, nn.Module]:
    """The innermost model of transformers that contains the input embeddings: they lead to last hidden states.

    What the library offers names it for some models only. ``base_model_prefix`` is that of the whole Gemma 3 or Llama 4
    also in their language models, and ``get_decoder`` returns models with a head, which ones depends on the version.

    Args:
        model (nn.Module): A model of transformers, with or without a head.

    Returns:
        tuple[str, nn.Module]: Its dotted name in `model` (``''`` for `model` itself), and the decoder.
    """
    from transformers import PreTrainedModel

    embeddings = model.get_input_embeddings()
    path = next((name for name, module in model.named_modules() if module is embeddings), '')
    parts = path.split('.')
    for length in range(len(parts) - 1, 0, -1):
        name = '.'.join(parts[:length])
        decoder = model.get_submodule(name)
        if isinstance(decoder, PreTrainedModel):
            return name, decoder
    return '', model


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, GPT-2's included; a router of experts is one by class, but returns more."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D) and 'Router' not in type(module).__name__


def embedding_factor(decoder: nn.Module) -> float:
    """What a decoder multiplies all embeddings by, also those of images.

    Gemma multiplies the embeddings of words by the root of their width. Transformers 5, and Gemma 3 in both versions,
    do so in the module of the embeddings; transformers 4 does it in the decoders of Gemma 1 and 2. Granite's decoder
    has its own factor in both versions; its vision-language models have images multiplied as well, so it counts as 1.

    Args:
        decoder (nn.Module): Of :func:`find_decoder`.
    """
    config: Any = decoder.config
    inside = config.model_type in ('gemma', 'gemma2') and type(decoder.get_input_embeddings()) is nn.Embedding
    return config.hidden_size**0.5 if inside else 1.0
