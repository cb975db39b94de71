"""The head of a causal language model as a module: all that the library computes from hidden states to logits."""

from typing import Any

from torch import Tensor, nn

# Options of a config with which the library's forward changes the logits of the linear layer.
SCALES, DIVISORS, CAPS = ('logit_scale',), ('logits_scaling',), ('final_logit_softcapping',)


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


def _first(config, names: tuple[str, ...], default: float | None) -> Any:
    values = [getattr(config, name, None) for name in names]
    return next((value for value in values if value is not None), default)
