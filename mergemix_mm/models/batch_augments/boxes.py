"""Mixers that cut a box: OA-CutMix (https://arxiv.org/abs/2606.04820), SaliencyMix (2006.01791)."""

import numpy as np
import torch
from mmpretrain.registry import BATCH_AUGMENTS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ...functional import box_mask, fine_grained_saliency, random_centers, spectral_residual
from ..vision_encoders import PatchScores
from .base import TrainingBatch
from .drawn_masks import DrawnMaskMixer
from .mask_mixer import MaskMixer

STATIC_SALIENCIES = {'fine_grained': fine_grained_saliency, 'spectral_residual': spectral_residual}


@BATCH_AUGMENTS.register_module()
class OACutMix(DrawnMaskMixer):
    """CutMix whose label counts what can be seen of the object of each image, instead of the area of the box.

    A box of area 1 - lambda shows the partner, lambda ~ Beta(alpha, alpha), its centre is uniform. The share of the
    image's own label is the visible area of its object divided by the visible area of both objects; where no object
    can be seen, it is the share of the area (OA-CutMix, https://arxiv.org/abs/2606.04820).

    With ``masks``, the objects are masks of the dataset, and only `MixupClassifier` can use the mixer. Without, the
    attention of a vision transformer stands for the object. ``ratio='area'`` is plain CutMix.

    Args:
        alpha (float): Parameter of lambda ~ Beta(alpha, alpha), > 0 and finite. Defaults to 1.0.
        masks (str, optional): The field of the data samples that holds the object's mask, such as ``'gt_seg_map'``:
            [H, W], not 0 on the object, of the size of the image. ``PackInputs(algorithm_keys=('gt_seg_map',))`` puts
            it there. Defaults to None: attention, or what ``ratio`` says.
        relative (bool): Whether the area of an object counts as a share of the whole object, so that large objects
            have no larger labels. Only with ``masks``. Defaults to False.
        ratio (str): ``'attention'`` or ``'area'``, see :class:`MaskMixer`. Defaults to ``'attention'``.
        **kwargs: The others of :class:`MaskMixer`.

    Raises:
        ValueError: If an argument is out of its range or has no effect. In ``loss()``, if a sample has no mask or one
            of another size than its image.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        masks: str | None = None,
        relative: bool = False,
        ratio: str = 'attention',
        **kwargs,
    ) -> None:
        super().__init__(alpha=alpha, ratio=ratio, **kwargs)
        if masks is None and relative:
            raise ValueError('OACutMix: relative=True has no effect without masks; name the field of the samples')
        if masks is not None and (ratio != 'attention' or self.encoder is not None or self.scoring_option()):
            given = self.scoring_option() or 'ratio and encoder'
            raise ValueError(f'OACutMix: masks={masks!r} decides the labels; remove {given}')
        self.masks = masks
        self.relative = relative
        self.needs_classifier = masks is not None

    def needs_mixup_classifier(self) -> str | None:
        """Masks are in the data samples, which only `MixupClassifier` hands on."""
        return None if self.masks is None else f'reads {self.masks} of the data samples'

    def draw_pixels(
        self, count: int, size: tuple[int, int], device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        """CutMix' box, [N, H, W] bool."""
        share = self.draw_lambda(count, generator)
        return box_mask(share, random_centers(count, size, generator, device), size)

    def score(self, images: Tensor, encoder: nn.Module | None = None) -> PatchScores | None:
        """The attention of the patches; see :meth:`MaskMixer.score`."""
        if self.masks is not None:
            raise ValueError(f'OACutMix {self.needs_mixup_classifier()}: call score_batch()')
        return super().score(images, encoder)

    def score_batch(self, batch: TrainingBatch) -> PatchScores:
        """The masks of the objects as the saliency of the pixels."""
        height, width = batch.images.shape[-2:]
        saliency = object_masks(batch.data_samples, str(self.masks), (height, width)).to(batch.images.device).flatten(1)
        if self.relative:
            saliency = saliency / saliency.sum(dim=1, keepdim=True).clamp(min=1)
        return PatchScores.unmerged(saliency, (height, width))


@BATCH_AUGMENTS.register_module()
class SaliencyMix(MaskMixer):
    """CutMix with the box around the most salient pixel of the partner (https://arxiv.org/abs/2006.01791).

    A box of area 1 - lambda shows the partner, lambda ~ Beta(alpha, alpha), in the same place of both images. Static
    saliency, which needs no model, finds its centre in each partner. The label is the area.

    Args:
        alpha (float): Parameter of lambda ~ Beta(alpha, alpha), > 0 and finite. Defaults to 1.0.
        static_saliency (str): ``'fine_grained'``, the paper's (Montabone and Soto, 2010), or ``'spectral_residual'``
            (Hou and Zhang, 2007). Defaults to ``'fine_grained'``.
        shared_box (bool): Whether the box of the first image serves the whole batch, as the code of the authors does
            (``SaliencyMix_CIFAR/saliencymix.py``). Defaults to False.
        **kwargs: The others of :class:`MaskMixer`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self, alpha: float = 1.0, static_saliency: str = 'fine_grained', shared_box: bool = False, **kwargs
    ) -> None:
        super().__init__(alpha=alpha, **kwargs)
        if static_saliency not in STATIC_SALIENCIES:
            raise ValueError(
                f'SaliencyMix: static_saliency={static_saliency!r} must be one of {tuple(STATIC_SALIENCIES)}'
            )
        if shared_box and self.per_image:
            raise ValueError('SaliencyMix: shared_box=True has one lambda for the batch; remove per_image=True')
        self.static_saliency = static_saliency
        self.shared_box = shared_box

    def draw_mask(
        self, images: Tensor, partner: Tensor, scores: PatchScores | None, generator: torch.Generator | None
    ) -> tuple[Tensor, tuple[int, int]]:
        """The boxes, on the grid of the pixels."""
        height, width = images.shape[-2:]
        maps = STATIC_SALIENCIES[self.static_saliency](images[partner[:1] if self.shared_box else partner])
        peak = maps.flatten(1).argmax(dim=1)
        center = torch.stack([peak.div(width, rounding_mode='floor'), peak % width], dim=1)
        mask = box_mask(self.draw_lambda(len(center), generator), center, (height, width))
        return mask.flatten(1).expand(len(images), -1), (height, width)


def object_masks(data_samples: list[DataSample], key: str, size: tuple[int, int]) -> Tensor:
    """The objects' masks of a batch.

    Args:
        data_samples (list[DataSample]): B samples.
        key (str): Their field, an array or tensor [H, W] or [1, H, W]; not 0 on the object.
        size (tuple[int, int]): H and W of the images.

    Returns:
        Tensor: [B, H, W] float32, 1 on the object and 0 elsewhere.

    Raises:
        ValueError: If a sample has no such field, or its size is not that of the images.
    """
    masks = []
    for sample in data_samples:
        if key not in sample:
            raise ValueError(
                f'a sample has no {key}, only {sorted(sample.keys())}: load it in the pipeline, and end with '
                f"dict(type='PackInputs', algorithm_keys=({key!r},))"
            )
        # Contiguous, because a flipped array has negative strides.
        mask = torch.as_tensor(np.ascontiguousarray(sample.get(key)))
        mask = mask[0] if mask.ndim == 3 else mask
        if tuple(mask.shape) != size:
            raise ValueError(
                f'{key} of a sample is {list(mask.shape)}, and its image is {list(size)}: what crops, resizes or pads '
                "the image has to do so with the mask, for instance in a 'TransformBroadcaster'"
            )
        masks.append(mask != 0)
    return torch.stack(masks).float()
