"""An ImageClassifier that mixes its batches itself, where the backbone can score them (MergeMix, arXiv 2510.23479)."""

from contextlib import nullcontext
from copy import deepcopy

import numpy as np
import torch
from mmengine.registry import MODELS
from mmpretrain.models import ImageClassifier
from mmpretrain.models.utils.batch_augments import RandomBatchAugment
from mmpretrain.structures import DataSample
from torch import Tensor

from ..batch_augments import MixResult, as_mixer, mix_batch
from ..vision_encoders import gathered

_NO_LABEL = (
    'negative ones mark images without a label, or classes to be ignored; leave such images out of the training '
    'annotations, or train without model.train_cfg'
)
_REMEDY = 'set num_classes of model.head and data_preprocessor to that of the dataset'


@MODELS.register_module()
class MixupClassifier(ImageClassifier):
    """Applies batch augments inside ``loss()``, so that MergeMix scores with the backbone that is being trained.

    It accepts every :class:`Mixer` and every batch augment of MMPretrain, one of them or several drawn at random. The
    last :class:`MixResult` is kept in ``mix_result`` for figures and logs (None if the last batch stayed unmixed), and
    ``ratio_mean`` is logged. A mixer that scores has to be in the list itself: one that is nested in another augment
    gets no backbone.

    Args:
        backbone (dict): Config of the backbone. MergeMix without its own encoder needs a vision transformer here.
        neck (dict, optional): Config of the neck. Defaults to None.
        head (dict, optional): Config of the head; its loss must take soft labels. Defaults to None.
        pretrained (str, optional): Path or URL of a checkpoint. Defaults to None.
        train_cfg (dict, optional): ``augments``, a config or a list of configs, and ``probs``, the probability of
            each (what is missing to 1 leaves the batch unmixed; None draws evenly). Defaults to None: no mixing.
        base_augment (dict, optional): Config of a batch augment whose loss on the same batch is added as
            ``base_loss``, e.g. ``dict(type='Mixup', alpha=0.8)`` as the MergeMix release trains. Defaults to None.
        data_preprocessor (dict, optional): Config of the data preprocessor. Defaults to None.
        init_cfg (dict, optional): Initialization config. Defaults to None.

    Raises:
        ValueError: If ``train_cfg`` has no augments, if the data preprocessor would mix as well, or if the head has
            several tasks. In ``loss()``, if the numbers of classes of head, preprocessor and labels disagree, or an
            image has no label or a negative one.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict | None = None,
        head: dict | None = None,
        pretrained: str | None = None,
        train_cfg: dict | None = None,
        base_augment: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            neck=neck,
            head=head,
            pretrained=pretrained,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        if getattr(self.data_preprocessor, 'batch_augments', None) is not None:
            raise ValueError(
                'data_preprocessor.batch_augments would mix the batch before model.train_cfg.augments does: '
                'MixupClassifier takes augments only in model.train_cfg'
            )
        if (train_cfg or base_augment) and hasattr(self.head, 'task_heads'):
            raise ValueError(
                f'model.head={type(self.head).__name__} has labels for each of {list(self.head.task_heads)}, and '
                'MixupClassifier mixes one label per image: take model.train_cfg and model.base_augment out (it then '
                'trains as an ImageClassifier), or train one task with the head of that task'
            )
        self.augments = _build_augments(train_cfg) if train_cfg else None
        self.base_augment = _build_augments(dict(augments=base_augment)) if base_augment else None
        self.mix_result: MixResult | None = None

    @torch.compiler.disable  # Draws from numpy and Python, and differs from step to step.
    def mix(self, inputs: Tensor, augments: RandomBatchAugment | None = None) -> MixResult | None:
        """Mix a batch with one of the configured augments, drawn at random.

        Args:
            inputs (Tensor): [B, 3, H, W] normalised images. Not written to.
            augments (RandomBatchAugment, optional): Defaults to those of ``train_cfg``.

        Returns:
            MixResult | None: None if no augment was drawn, for a batch of one, and without augments.
        """
        augments = augments or self.augments
        if augments is None:
            return None
        backbone_scores = any(one is not None and as_mixer(one).needs_encoder for one in augments.augments)
        # Gathered before the draw: ranks draw different augments, but must take part in the same collectives.
        with gathered(self.backbone) if backbone_scores else nullcontext() as encoder, torch.no_grad():
            augment = augments.augments[np.random.choice(len(augments.augments), p=augments.probs)]
            if augment is None or len(inputs) < 2:
                return None
            return mix_batch(augment, inputs, encoder)

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Mix the batch and calculate the losses of the head on mixed labels.

        Args:
            inputs (Tensor): [B, 3, H, W] normalised images.
            data_samples (list[DataSample]): With ``gt_label``, or ``gt_score`` for soft or multi-hot labels. Not
                written to.

        Returns:
            dict[str, Tensor]: the head's losses, ``base_loss`` (with ``base_augment``), and ``ratio_mean``, the mean
            share of the images' own labels (1 if unmixed).
        """
        if self.augments is None and self.base_augment is None:
            return super().loss(inputs, data_samples)
        scores = self._scores(data_samples, inputs.device)
        self.mix_result = None  # Frees the last batch before the next one is mixed.
        self.mix_result = self.mix(inputs)
        losses = self._mixed_loss(self.mix_result, inputs, scores, data_samples)
        if self.base_augment is not None:
            base = self._mixed_loss(self.mix(inputs, self.base_augment), inputs, scores, data_samples)
            losses |= {f'base_{name}': value for name, value in base.items() if 'loss' in name}
        losses['ratio_mean'] = inputs.new_ones(()) if self.mix_result is None else self.mix_result.ratio.mean()
        return losses

    def _mixed_loss(
        self, result: MixResult | None, inputs: Tensor, scores: Tensor, data_samples: list[DataSample]
    ) -> dict[str, Tensor]:
        if result is not None:
            inputs, scores = result.images, result.mix_scores(scores)
        features = self.extract_feat(inputs)  # Before the samples are copied, so that a GPU computes meanwhile.
        return self.head.loss(features, self._with_scores(data_samples, scores))

    @torch.compiler.disable  # Nothing to compile, and torch 2.8 cannot leave the graph in a loop over a strict zip.
    def _with_scores(self, data_samples: list[DataSample], scores: Tensor) -> list[DataSample]:
        return [sample.new().set_gt_score(score) for sample, score in zip(data_samples, scores, strict=True)]

    @torch.compiler.disable  # Reads the labels.
    def _scores(self, data_samples: list[DataSample], device: torch.device) -> Tensor:
        """Labels [B, num_classes]: the samples' own scores, else one-hot (multi-hot) labels."""
        kind = 'gt_score' if 'gt_score' in data_samples[0] else 'gt_label'
        without = sum(kind not in sample for sample in data_samples)
        if without:
            raise ValueError(
                f'{without} of {len(data_samples)} images of this batch have no {kind}, and every image that is mixed '
                'needs one: use a training set with labels, written alike for all images'
            )
        if kind == 'gt_score':
            scores = torch.stack([sample.gt_score for sample in data_samples])
            num_classes = self._num_classes(default=scores.size(1))
            if scores.size(1) != num_classes:
                raise ValueError(f'gt_score has {scores.size(1)} classes, but num_classes={num_classes}: {_REMEDY}')
            if not bool((scores >= 0).all()):
                raise ValueError(
                    f'gt_score of this batch has {scores[~(scores >= 0)][0].item():g}, and only scores >= 0 can be '
                    f'mixed: {_NO_LABEL}'
                )
            return scores.to(device).float()
        num_classes = self._num_classes()
        labels = torch.cat([sample.gt_label for sample in data_samples])
        if labels.numel():
            low, high = torch.stack(labels.aminmax()).tolist()
            if low < 0:
                raise ValueError(f'a label of this batch is {low}, and only labels >= 0 can be mixed: {_NO_LABEL}')
            if high >= num_classes:
                raise ValueError(
                    f'the labels of this batch are in [{low}, {high}], but num_classes={num_classes} allows '
                    f'[0, {num_classes - 1}]: {_REMEDY}'
                )
        # One kernel for the whole batch; MMPretrain's batch_label_to_onehot would start one for each image.
        numbers = torch.tensor([sample.gt_label.numel() for sample in data_samples])
        rows = torch.arange(len(data_samples)).repeat_interleave(numbers).to(device)
        scores = torch.zeros(len(data_samples), num_classes, device=device)
        return scores.index_put_((rows, labels.to(device)), scores.new_ones(()), accumulate=True)

    def _num_classes(self, default: int | None = None) -> int:
        given = {
            'model.head.num_classes': getattr(self.head, 'num_classes', None),
            'data_preprocessor.num_classes': getattr(self.data_preprocessor, 'num_classes', None),
        }
        found: dict[str, int] = {key: value for key, value in given.items() if value is not None}
        if not found and default is not None:
            return default
        if not found:
            raise ValueError(
                f'mixing labels needs the number of classes, which {type(self.head).__name__} does not keep: set '
                'data_preprocessor=dict(num_classes=...) to that of the dataset'
            )
        if len(set(found.values())) != 1:
            raise ValueError(f'mixing labels needs one number of classes; found {found}: {_REMEDY}')
        return next(iter(found.values()))


def _build_augments(cfg: dict) -> RandomBatchAugment:
    """Build the augments of a ``train_cfg``."""
    if not cfg.get('augments') or not set(cfg) <= {'augments', 'probs'}:
        raise ValueError(
            f'model.train_cfg={dict(cfg)} must hold augments, one batch augment or a list of them, and may hold probs'
        )
    # A copy, because RandomBatchAugment appends to the list of probabilities that it is given.
    return RandomBatchAugment(**deepcopy(cfg))
