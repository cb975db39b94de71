"""A neck between the tokens of SPHINX and the heads of MMPretrain."""

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class TokenMean(BaseModule):
    """Tokens [B, N, C] -> the mean of each image's, as heads take it: a tuple of one [B, C]."""

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (tokens.mean(dim=1),)
