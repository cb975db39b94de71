"""What a mixer is, and what it returns for one batch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...functional import mix_labels
from ..vision_encoders import PatchScores


@dataclass
class MixResult:
    """A mixed batch. Shapes: B images, L' patches.

    Args:
        images (Tensor): [B, 3, H, W] mixed, normalised images.
        partner (Tensor): [B] int64, the image each one was mixed with.
        ratio (Tensor): [B] float32, the share of the image's own label in [0, 1].
        mask (Tensor, optional): [B, L'] bool over the grid of the mask, row by row; True where the image keeps its own
            pixels. Soft masks are floats, the own share in [0, 1]. None for mixers without one (Mixup, CutMix,
            ResizeMix of MMPretrain).
        saliency (Tensor, optional): [B, L'] float32, the attention each patch gets.
        grid (tuple[int, int], optional): Rows and columns of the mask: those of the patches, or of the pixels.
        clean (Tensor, optional): [B, 3, H, W], the images before mixing.
        partner_ratio (Tensor, optional): [B] float32, the share of the partner's label, for labels that do not sum to
            one. Defaults to None: 1 - ratio.
        saliency_grid (tuple[int, int], optional): Rows and columns of the saliency. Defaults to None: `grid`.
    """

    images: Tensor
    partner: Tensor
    ratio: Tensor
    mask: Tensor | None = None
    saliency: Tensor | None = None
    grid: tuple[int, int] | None = None
    clean: Tensor | None = None
    partner_ratio: Tensor | None = None
    saliency_grid: tuple[int, int] | None = None

    def mix_scores(self, scores: Tensor) -> Tensor:
        """Mix labels [B, num_classes] as the images were mixed."""
        return mix_labels(scores, self.partner, self.ratio, self.partner_ratio)


@dataclass
class TrainingBatch:
    """The clean batch and the classifier that is trained on it, for a mixer with `needs_classifier`.

    Args:
        classifier (nn.Module): The `MixupClassifier`; ``classifier.head(classifier.extract_feat(images))`` are logits.
        images (Tensor): [B, 3, H, W] normalised images. Not to be written to.
        labels (Tensor): [B, num_classes] float32, one-hot or soft.
        data_samples (list[DataSample]): The samples of the batch. Not to be written to.
    """

    classifier: nn.Module
    images: Tensor
    labels: Tensor
    data_samples: list

    @torch.compiler.disable  # Nothing to compile, and torch 2.8 cannot leave the graph in a loop over a strict zip.
    def head_loss(self, features: tuple, labels: Tensor) -> dict[str, Tensor]:
        """The losses of the classifier's head on features, with labels [B, num_classes] for the samples."""
        samples = [x.new().set_gt_score(y) for x, y in zip(self.data_samples, labels, strict=True)]
        return self.classifier.head.loss(features, samples)


@dataclass
class MixedPass:
    """What the training pass over a mixed batch has shown, for a mixer with `reads_pass`.

    Args:
        batch (TrainingBatch): The clean batch.
        scores (PatchScores): Attention per patch of the mixed images, without gradient; see :func:`recorded`.
        tokens (Tensor): [B, L, C], all tokens after the backbone's last layer and norm, prefix first. With gradient.
        features (tuple): What the head gets. With gradient.
    """

    batch: TrainingBatch
    scores: PatchScores
    tokens: Tensor
    features: tuple


class Mixer(ABC):
    """Mixes the images of a batch. This is all that `MixupClassifier` and `VLMTuner` ask of a mixer.

    A new mixer is one subclass that implements :meth:`mix`, registered with ``BATCH_AUGMENTS``. The properties below
    have defaults for a mixer that scores nothing; a subclass overrides what differs. Mixers that choose pixels by a
    mask extend :class:`MaskMixer`. Batch augments of MMPretrain are no mixers: :func:`as_mixer` wraps them.

    Two kinds of mixers work only in `MixupClassifier`, which calls them in another way:

    - ``needs_classifier``: labels, gradients or predictions decide the mix. :meth:`score_batch` is given the classifier
      and its batch, and :meth:`mix_scored` mixes with what it returns.
    - ``reads_pass``: the training pass over the mixed images decides the labels, or adds losses. :meth:`after_pass` is
      given what this pass has shown; there is no further one.
    """

    # Whether each image is mixed with another one. False for a mixer that changes each image without a partner.
    needs_partner: bool = True
    # Whether `mix` accepts the partners that the caller has drawn. False for a mixer that always draws its own.
    takes_partner: bool = True
    # Whether `score_batch` has to be given the classifier and its labels.
    needs_classifier: bool = False
    # Whether `after_pass` has to be called, with the attention of layer `read_layer` (counted from 1; -1: the last).
    reads_pass: bool = False
    read_layer: int = -1
    # Whether a mask that was drawn at one image size can be applied at another, as VLMTuner does.
    resizes: bool = True

    @property
    def needs_encoder(self) -> bool:
        """Whether :meth:`mix` has to be given the encoder that scores the patches."""
        return False

    @abstractmethod
    def mix(
        self,
        images: Tensor,
        encoder: nn.Module | None = None,
        generator: torch.Generator | None = None,
        partner: Tensor | None = None,
    ) -> MixResult:
        """Mix a batch of images with each other.

        Args:
            images (Tensor): [B, 3, H, W] normalised images. Not written to.
            encoder (nn.Module, optional): The model that scores the patches, for a mixer with :attr:`needs_encoder`.
            generator (torch.Generator, optional): Source of randomness. Defaults to torch's global one.
            partner (Tensor, optional): [B] int64, the image each one is mixed with. Defaults to None: drawn here.

        Returns:
            MixResult: mixed images, partners and ratios; mask and saliency if the mixer has them.
        """

    def score(self, images: Tensor, encoder: nn.Module | None = None) -> PatchScores | None:
        """What :meth:`mix` finds out about the patches of images [B, 3, H, W]; None for a mixer that scores nothing."""
        return None

    def mix_scored(
        self,
        images: Tensor,
        scores: PatchScores,
        generator: torch.Generator | None = None,
        partner: Tensor | None = None,
    ) -> MixResult:
        """:meth:`mix` for images that :meth:`score` has scored; a mixer that scores must have both.

        `mix_canvases` calls it for images of different sizes, each of which is scored once, at its own size.
        """
        raise NotImplementedError(f'{type(self).__name__} scores patches, but has no mix_scored()')

    def score_batch(self, batch: TrainingBatch) -> PatchScores:
        """What :meth:`mix_scored` gets, for a mixer with `needs_classifier`."""
        raise NotImplementedError(f'{type(self).__name__} needs the classifier, but has no score_batch()')

    def after_pass(self, result: MixResult, seen: MixedPass) -> tuple[MixResult, dict[str, Tensor]]:
        """For a mixer with `reads_pass`: the mix with its final labels, and losses to be added to the head's.

        Args:
            result (MixResult): What :meth:`mix` returned.
            seen (MixedPass): What the training pass over ``result.images`` has shown.
        """
        raise NotImplementedError(f'{type(self).__name__} reads the mixed pass, but has no after_pass()')

    def needs_mixup_classifier(self) -> str | None:
        """Why the mixer works in `MixupClassifier` only, as the end of a sentence; None if it works anywhere."""
        if self.needs_classifier:
            return 'needs the classifier and the labels to score the images'
        return 'reads its labels from the pass over the mixed images' if self.reads_pass else None

    def __call__(self, inputs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images and labels as MMPretrain's batch augments do.

        Args:
            inputs (Tensor): [B, 3, H, W] normalised images.
            scores (Tensor): [B, num_classes] one-hot or soft labels.

        Returns:
            tuple: mixed images and labels; a batch of one is returned unmixed.
        """
        if reason := self.needs_mixup_classifier():
            name = type(self).__name__
            raise ValueError(f"{name} {reason}: train with model=dict(type='MixupClassifier', ...)")
        if len(inputs) < 2:
            return inputs, scores.float()
        result = self.mix(inputs)
        return result.images, result.mix_scores(scores)

    @property
    def no_margin(self) -> str | None:
        """Why 1 - ratio cannot be the margin of a preference, or None if it can.

        A margin needs a ratio that says how much of an image can still be seen.
        """
        return None

    def scoring_size(self, encoder: nn.Module | None = None) -> tuple[int, int] | None:
        """The one size at which images of different sizes are scored, or None if each is mixed at its own size.

        A mixer with a scoring size must return mask and grid: `mix_canvases` applies the mask to each image at the
        image's own size, and takes the other pixels from :meth:`fill`.
        """
        return None

    def fill(self, images: Tensor, partners: Tensor) -> Tensor:
        """What replaced patches show, [B, 3, H, W]: the partners, unless a subclass makes something of `images`."""
        return partners
