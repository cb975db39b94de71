"""GuidedMixup: pixels shared by their saliency (https://arxiv.org/abs/2306.16612)."""

import torch
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor, nn

from ...functional import gaussian_smooth, greedy_cycle, saliency_share, spectral_residual
from ...utils.numbers import check_number
from ..vision_encoders import PatchScores
from .base import TrainingBatch
from .input_gradient import input_gradient, pixel_scores
from .mask_mixer import MaskMixer

SOURCES = ('spectral', 'gradient')


@BATCH_AUGMENTS.register_module()
class GuidedMix(MaskMixer):
    """Blend each image with a partner, pixel by pixel, by the share of saliency that is its own.

    The own share of a pixel is S_i / (S_i + S_j), where each map S is smoothed and sums to 1; the label's share is the
    mean of the mask. Partners are the images whose maps differ most (L2), along a greedy cycle through the batch. Where
    the caller draws the partners (`VLMTuner`), these stay.

    Args:
        source (str): What makes a pixel salient: ``'spectral'``, the spectral residual of the image, which needs no
            model (Guided-SR); ``'gradient'``, the gradient of the loss of the classifier that is trained
            (Guided-AP), which costs a forward and a backward pass. Defaults to ``'spectral'``.
        sigma (float): Standard deviation of the Gaussian that smooths the maps, in pixels, > 0. It is cut off at one
            standard deviation, 7 x 7 pixels in the authors' code (3neutronstar/GuidedMixup, ``mixup.py``). Defaults to
            3.0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    ratios = ('area',)
    mask_needs_scores = True

    def __init__(self, source: str = 'spectral', sigma: float = 3.0) -> None:
        if source not in SOURCES:
            raise ValueError(f'GuidedMix: source={source!r} must be one of {SOURCES}')
        check_number('GuidedMix: sigma', sigma, '> 0 and finite', above=0)
        super().__init__()
        self.source = source
        self.sigma = sigma
        self.needs_classifier = source == 'gradient'

    @property
    def needs_encoder(self) -> bool:
        """False: no encoder scores, but the pixels themselves or the classifier."""
        return False

    def scoring_size(self, encoder: nn.Module | None = None) -> tuple[int, int] | None:
        """None: each image is scored at its own size."""
        return None

    def score(self, images: Tensor, encoder: nn.Module | None = None) -> PatchScores:
        """The smoothed spectral residual of images [B, 3, H, W], for each pixel; `encoder` is ignored."""
        if self.needs_classifier:
            raise ValueError(f'GuidedMix {self.needs_mixup_classifier()}')
        # The authors take magnitudes, smooth them at 128 pixels, and smooth all maps again.
        maps = spectral_residual(images, side=128, sigma=self.sigma, radius=self._radius, power=1)
        return pixel_scores(self._smooth(maps))

    def score_batch(self, batch: TrainingBatch) -> PatchScores:
        """The smoothed gradient of the classifier's loss on the clean images, for each pixel."""
        scores = input_gradient(batch)
        return pixel_scores(self._smooth(scores.saliency.unflatten(1, scores.grid)))

    def draw_partner(
        self, images: Tensor, scores: PatchScores | None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Partners [B] int64 along the greedy cycle. Nothing is drawn."""
        assert scores is not None  # mask_needs_scores
        return greedy_cycle(scores.saliency)

    def draw_mask(
        self, images: Tensor, partner: Tensor, scores: PatchScores | None, generator: torch.Generator | None
    ) -> tuple[Tensor, tuple[int, int]]:
        """The own share of the saliency of each pixel."""
        assert scores is not None  # mask_needs_scores
        return saliency_share(scores.saliency, partner), scores.grid

    @property
    def _radius(self) -> int:
        return max(round(self.sigma), 1)

    def _smooth(self, maps: Tensor) -> Tensor:
        return gaussian_smooth(maps, self.sigma, self._radius)
