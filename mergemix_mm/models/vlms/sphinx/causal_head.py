"""The head of a causal language model as a module: all that the library computes from hidden states to logits."""

from inspect import signature
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ....utils.text import one_line
from ...decoders import find_decoder

# Options of a config with which the library's forward changes the logits of the linear layer.
SCALES, DIVISORS, CAPS = ('logit_scale',), ('logits_scaling',), ('final_logit_softcapping',)
# Types of models that read padding like text, so that the answers of a batch would depend on each other's lengths.
READS_PADDING = ('rwkv',)


class ScaledHead(nn.Module):
    """A linear layer whose logits are scaled (Cohere), divided (Granite) or softly capped (Gemma 2).

    Args:
        linear (nn.Module): Hidden states [..., C] -> [..., V].
        scale (float): Factor of the logits. Defaults to 1.0.
        cap (float, optional): c of c * tanh(logits / c). Defaults to None: no cap.
    """

    def __init__(self, linear: nn.Module, scale: float = 1.0, cap: float | None = None) -> None:
        super().__init__()
        self.linear, self.scale, self.cap = linear, scale, cap

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., C] -> logits [..., V]."""
        logits = self.linear(hidden) * self.scale
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()


def causal_head(language_model: nn.Module) -> nn.Module:
    """The head of a model of transformers: its output embeddings, wrapped where the config changes their logits."""
    config, linear = language_model.config.get_text_config(), language_model.get_output_embeddings()
    scale = _first(config, SCALES, 1.0) / _first(config, DIVISORS, 1.0)
    cap = _first(config, CAPS, None)
    return linear if scale == 1 and cap is None else ScaledHead(linear, scale, cap)


def check_head(language_model: nn.Module) -> None:
    """Refuse a model whose logits differ from those of its :func:`causal_head`.

    The model runs with given hidden states in the place of its decoder. On the meta device nothing is compared.

    Raises:
        ValueError: If they differ, or the model cannot run with embeddings of tokens.
    """
    name = f'SphinxModel: language_model {type(language_model).__name__}'
    linear: Any = language_model.get_output_embeddings()
    path, decoder = find_decoder(language_model)
    if linear is None or not path:
        raise ValueError(f'{name} has no head, or no decoder without it; give a causal language model of transformers')
    if 'inputs_embeds' not in signature(language_model.prepare_inputs_for_generation).parameters:
        raise ValueError(f'{name} cannot generate from inputs_embeds, by which it would read images; give another')
    if decoder.config.model_type in READS_PADDING:
        raise ValueError(f'{name} reads padding like text (it ignores attention_mask); give another language model')
    if linear.weight.is_meta:
        return
    # No random numbers: a model has the same weights whether it is checked or not. Large ones, to reach a soft cap.
    hidden = 100 * torch.arange(2.0 * linear.weight.size(1), device=linear.weight.device).sin().view(1, 2, -1)
    hidden = hidden.to(linear.weight.dtype)
    embeddings: Any = language_model.get_input_embeddings()
    embeds = embeddings.weight.new_zeros(1, 2, embeddings.weight.size(1))
    with (
        torch.no_grad(),
        mock.patch.object(decoder, 'forward', lambda *_, **__: _DecoderOutput(hidden)),
    ):
        try:
            expected = language_model(inputs_embeds=embeds, use_cache=False).logits.float()
            found = causal_head(language_model)(hidden).float()
        except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
            raise ValueError(f'{name} cannot run on embeddings of tokens: {one_line(error, 200)}') from error
    if found.shape != expected.shape or (found - expected).abs().max() > 0.01 * expected.abs().max():
        raise ValueError(
            f'{name} has logits that are not those of its output embeddings, scaled, divided or capped by '
            f'{(*SCALES, *DIVISORS, *CAPS)} of its config; give another language model'
        )


class _DecoderOutput:
    """Hidden states as the output of any decoder: what it has besides is None."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]


def _first(config, names: tuple[str, ...], default: float | None) -> Any:
    values = [getattr(config, name, None) for name in names]
    return next((value for value in values if value is not None), default)
