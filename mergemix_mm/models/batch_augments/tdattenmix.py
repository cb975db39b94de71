"""TdAttenMix: SMMix whose saliency and labels are guided by the class (https://arxiv.org/abs/2501.15409)."""

import torch
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor, nn

from ...functional import area_ratio, top_down_saliency
from ...utils.numbers import check_number
from ..vision_encoders import PatchScores
from .base import TrainingBatch
from .smmix import SMMix


@BATCH_AUGMENTS.register_module()
class TdAttenMix(SMMix):
    """Put the square of the partner that matters most for its class onto the one that matters least for the own class.

    What matters is the attention from the class token in the last layer (bottom-up), times the cosine between the
    patch's token and the classifier's weights of the image's class (top-down), negative ones as 0. The share of the own
    label is ``area_weight`` x that of the area + (1 - ``area_weight``) x that of the visible saliency.

    The authors take the saliency from AbS-ViT, a second network with a trained feedback path that is frozen and runs
    twice (absvit_control.py). Here the model that is trained scores itself, in the pass without gradient over the
    clean images that gives the predictions for the losses as well. `MixupClassifier` only.

    Args:
        min_side (float): As for :class:`SMMix`. Defaults to 0.25.
        max_side (float): As for :class:`SMMix`. Defaults to 0.75.
        area_weight (float): Share of the area in the label, in [0, 1]. Defaults to 0.5.
        region_weight (float): As for :class:`SMMix`, whose losses the authors' code adds. Defaults to 1.0.
        consistency_weight (float): As for :class:`SMMix`. Defaults to 1.0.

    Raises:
        ValueError: If an argument is out of its range. In ``loss()``, if the head is not one linear layer on the
            tokens.
    """

    def __init__(
        self,
        min_side: float = 0.25,
        max_side: float = 0.75,
        area_weight: float = 0.5,
        region_weight: float = 1.0,
        consistency_weight: float = 1.0,
    ) -> None:
        check_number('TdAttenMix: area_weight', area_weight, 'in [0, 1]', least=0, most=1)
        super().__init__(min_side, max_side, region_weight, consistency_weight, ratio='attention')
        self.area_weight = area_weight
        self.saliency = 'attention'
        self.needs_classifier = True

    def score(self, images: Tensor, encoder: nn.Module | None = None) -> PatchScores | None:
        """Not possible: only :meth:`score_batch` knows the classes.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f'TdAttenMix {self.needs_mixup_classifier()}: call score_batch()')

    def class_saliency(self, scores: PatchScores, tokens: Tensor, batch: TrainingBatch) -> Tensor:
        """Attention of the patches, weighted by their likeness to the class."""
        labels = batch.labels
        weight = labels @ _class_weights(batch.classifier.head, labels.size(1), tokens.size(2)).detach()
        return top_down_saliency(scores.saliency, tokens[:, scores.num_prefix_tokens :], weight)

    def draw_ratio(
        self,
        scores: PatchScores | None,
        partner: Tensor,
        mask: Tensor,
        grid: tuple[int, int],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The share of the visible saliency, blended with that of the area."""
        return torch.lerp(
            super().draw_ratio(scores, partner, mask, grid, generator), area_ratio(mask), self.area_weight
        )


def _class_weights(head: nn.Module, num_classes: int, channels: int) -> Tensor:
    """The weights [num_classes, channels] of a head that is a linear layer (or two, for a distillation token)."""
    linear = [module for module in head.modules() if isinstance(module, nn.Linear)]
    shapes = {tuple(module.weight.shape) for module in linear}
    if shapes != {(num_classes, channels)}:
        raise ValueError(
            f'TdAttenMix: model.head={type(head).__name__} has linear layers with weights {sorted(shapes)}, and must '
            f'have one of {(num_classes, channels)}, as VisionTransformerClsHead has without hidden_dim'
        )
    return linear[0].weight
