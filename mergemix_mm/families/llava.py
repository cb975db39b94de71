"""LLaVA 1.5 (https://arxiv.org/abs/2310.03744): a square image, a CLIP tower, an MLP, one placeholder per patch."""

from torch import nn

from .base import Family


class LlavaFamily(Family):
    """``LlavaForConditionalGeneration``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        tower = model.config.vision_config.model_type
        if tower == 'pixtral':
            raise ValueError(
                f'a LLaVA model with vision_config.model_type={tower!r} packs images of several sizes into one '
                'sequence, which is not supported; use LLaVA 1.5, LLaVA-NeXT, InternVL or Qwen2.5-VL'
            )
