"""An ImageClassifier that mixes its batches itself, where the backbone can score them (MergeMix, arXiv 2510.23479)."""

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from inspect import signature

import numpy as np
import torch
from mmengine.dist import broadcast
from mmengine.registry import MODELS
from mmpretrain.models import ImageClassifier
from mmpretrain.models.utils.batch_augments import RandomBatchAugment
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ...utils.numbers import check_number
from ..batch_augments import MaskMixer, MixedPass, Mixer, MixResult, TrainingBatch, as_mixer
from ..evaluation_mode import evaluation_mode
from ..vision_encoders import PatchScores, gathered, recorded, sharded_units

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

    ``clean_weight=1.0`` is the objective of the MergeMix paper: the loss of the clean images is added. If the backbone
    is a `ToMeVisionTransformer` that merges in training, this clean pass scores for MergeMix as well, with the merging
    of the backbone, and there is no scoring pass. Other backbones score in a truncated pass without gradient. The
    graphs of both passes live until the backward.

    Args:
        backbone (dict): Config of the backbone. MergeMix without its own encoder needs a vision transformer here.
        neck (dict, optional): Config of the neck. Defaults to None.
        head (dict, optional): Config of the head; its loss must take soft labels. Defaults to None.
        pretrained (str, optional): Path or URL of a checkpoint. Defaults to None.
        train_cfg (dict, optional): ``augments``, a config or a list of configs, and ``probs``, the probability of
            each (what is missing to 1 leaves the batch unmixed; None draws evenly). Defaults to None: no mixing.
        base_augment (dict, optional): Config of a batch augment whose loss on the same batch is added as
            ``base_loss``, e.g. ``dict(type='Mixup', alpha=0.8)`` as the MergeMix release trains. Defaults to None.
        clean_weight (float): Weight of ``clean_loss``, the head's loss of the unmixed images, >= 0. It is in place of
            the mixed loss for a batch that stays unmixed. Defaults to 0.0: mixed images only.
        ratio_reduce (str, optional): ``'batch_mean'`` gives every image the mean ratio of the batch, on which the
            MergeMix release trains in effect (docs/fidelity.md). Defaults to None: each image has its own ratio.
        data_preprocessor (dict, optional): Config of the data preprocessor. Defaults to None.
        init_cfg (dict, optional): Initialization config. Defaults to None.

    Raises:
        ValueError: If ``train_cfg`` has no augments, if the data preprocessor would mix as well, if the head has
            several tasks, if an argument is out of its range, or if the clean pass scores beside a mixer that sets how
            tokens merge. In ``loss()``, if the numbers of classes of head, preprocessor and labels disagree, or an
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
        clean_weight: float = 0.0,
        ratio_reduce: str | None = None,
    ) -> None:
        check_number('MixupClassifier: clean_weight', clean_weight, '>= 0 and finite', least=0)
        if ratio_reduce not in (None, 'batch_mean'):
            raise ValueError(f"MixupClassifier: ratio_reduce={ratio_reduce!r} must be None or 'batch_mean'")
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
        if (train_cfg or base_augment or clean_weight) and hasattr(self.head, 'task_heads'):
            raise ValueError(
                f'model.head={type(self.head).__name__} has labels for each of {list(self.head.task_heads)}, and '
                'MixupClassifier mixes one label per image: take model.train_cfg, model.base_augment and '
                'model.clean_weight out (it then trains as an ImageClassifier), or train one task with the head of '
                'that task'
            )
        self.clean_weight = clean_weight
        self.ratio_reduce = ratio_reduce
        self.augments = _build_augments(train_cfg) if train_cfg else None
        self.base_augment = _build_augments(dict(augments=base_augment)) if base_augment else None
        self.mix_result: MixResult | None = None
        for augment in self.augments.augments if self.augments is not None else ():
            if self._shares_clean_pass(augment):
                _check_schedule(augment, self.backbone)

    @torch.compiler.disable
    def mix(
        self,
        inputs: Tensor,
        augments: RandomBatchAugment | None = None,
        data_samples: list[DataSample] | None = None,
    ) -> MixResult | None:
        """Mix a batch with one of the configured augments, drawn at random, as for a figure.

        Args:
            inputs (Tensor): [B, 3, H, W] normalised images. Not written to.
            augments (RandomBatchAugment, optional): Defaults to those of ``train_cfg``.
            data_samples (list[DataSample], optional): The samples, for mixers that need the labels, and for those that
                read the mixed pass: the ratios are final. Defaults to None: such ratios are provisional.

        Returns:
            MixResult | None: None if no augment was drawn, for a batch of one, and without augments.

        Raises:
            ValueError: If a mixer needs the labels and there are no samples.
        """
        augments = augments or self.augments
        mixer = _draw(augments, len(inputs))
        labels = inputs.new_empty(0) if data_samples is None else self._scores(data_samples, inputs.device)
        batch = TrainingBatch(self, inputs, labels, data_samples or [])
        result = self._mix(augments, mixer, batch)
        if data_samples is not None and mixer is not None and mixer.reads_pass and result is not None:
            with evaluation_mode(self, inputs.device.type):
                result = self._after_pass(mixer, result, batch)[1]
        return result

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Mix the batch and calculate the losses of the head on mixed labels.

        Args:
            inputs (Tensor): [B, 3, H, W] normalised images.
            data_samples (list[DataSample]): With ``gt_label``, or ``gt_score`` for soft or multi-hot labels. Not
                written to.

        Returns:
            dict[str, Tensor]: the head's losses on the mixed batch, ``clean_loss`` (with ``clean_weight``),
            ``base_loss`` (with ``base_augment``), and ``ratio_mean``, the mean share of the images' own labels (1 if
            unmixed). With ``clean_weight``, an unmixed batch has only the clean loss.
        """
        if self.augments is None and self.base_augment is None and not self.clean_weight:
            return super().loss(inputs, data_samples)
        batch = TrainingBatch(self, inputs, self._scores(data_samples, inputs.device), data_samples)
        self.mix_result = None  # Frees the last batch before the next one is mixed.
        losses: dict[str, Tensor] = {}
        mixer, scores = _draw(self.augments, len(inputs), alike=self._ranks_draw_alike()), None
        if self.clean_weight:
            clean, scores = self._clean_loss(batch, mixer)
            losses |= {f'clean_{name}': self.clean_weight * value for name, value in clean.items() if 'loss' in name}
        result = self._mix(self.augments, mixer, batch, scores)
        if mixer is not None or not self.clean_weight:
            mixed, self.mix_result = self._mixed_loss(mixer, result, batch)
            losses |= mixed
        if self.base_augment is not None:
            mixer = _draw(self.base_augment, len(inputs))
            base, _ = self._mixed_loss(mixer, self._mix(self.base_augment, mixer, batch), batch)
            losses |= {f'base_{name}': value for name, value in base.items() if 'loss' in name}
        losses['ratio_mean'] = inputs.new_ones(()) if self.mix_result is None else self.mix_result.ratio.mean()
        return losses

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all losses, which is logged as ``loss``; the mixed one of several is logged as ``mixed_loss``."""
        several = sum('loss' in name for name in losses) > 1
        # MMEngine logs the sum under the name `loss`, and a term of this name would take its place.
        return super().parse_losses({'mixed_loss' if several and k == 'loss' else k: v for k, v in losses.items()})

    def _ranks_draw_alike(self) -> bool:
        """Whether all ranks must draw the same mixer: they differ in the number of passes of a sharded backbone."""
        if self.augments is None:
            return False
        scored_by_batch = {one is not None and as_mixer(one).needs_classifier for one in self.augments.augments}
        mixed = {one is not None for one in self.augments.augments}
        differ = len(scored_by_batch) > 1 or (self.clean_weight > 0 and len(mixed) > 1)
        return differ and bool(sharded_units(self.backbone))

    def _shares_clean_pass(self, augment: object) -> bool:
        """Whether the clean training pass scores for a mixer: it merges, and the backbone would score anyway."""
        merges = self.clean_weight > 0 and getattr(self.backbone, 'merges_in_training', False)
        return merges and isinstance(augment, MaskMixer) and augment.scored_by_clean_pass and augment.needs_encoder

    def _clean_loss(self, batch: TrainingBatch, mixer: Mixer | None) -> tuple[dict[str, Tensor], PatchScores | None]:
        """The head's losses on the clean images, and their scores if this pass scores for the mixer."""
        if isinstance(mixer, MaskMixer) and self._shares_clean_pass(mixer):
            features, scores, _ = self._recorded_features(batch.images, mixer.layer, mixer.saliency)
        else:
            features, scores = self.extract_feat(batch.images), None
        return batch.head_loss(features, batch.labels), scores

    @torch.compiler.disable  # Draws from Python's generators, and differs from step to step.
    def _mix(
        self,
        augments: RandomBatchAugment | None,
        mixer: Mixer | None,
        batch: TrainingBatch,
        scores: PatchScores | None = None,
    ) -> MixResult | None:
        """Mix the batch with the scores that are known, or with those that the drawn mixer asks for."""
        found = [] if augments is None else [as_mixer(one) for one in augments.augments if one is not None]
        backbone_scores = any(one.needs_encoder and not self._shares_clean_pass(one) for one in found)
        # Gathered whatever was drawn: ranks draw different mixers, but must take part in the same collectives.
        with gathered(self.backbone) if backbone_scores else nullcontext() as encoder:
            if mixer is None:
                return None
            if mixer.needs_classifier:
                if not batch.data_samples:
                    raise ValueError(f'{type(mixer).__name__} {mixer.needs_mixup_classifier()}: pass data_samples')
                scores = mixer.score_batch(batch)
            with torch.no_grad():
                if scores is not None:
                    return mixer.mix_scored(batch.images, scores)
                return mixer.mix(batch.images, encoder)

    def _mixed_loss(
        self, mixer: Mixer | None, result: MixResult | None, batch: TrainingBatch
    ) -> tuple[dict[str, Tensor], MixResult | None]:
        """The head's losses on a mixed batch and the mixer's own, and the mix with its final labels."""
        added: dict[str, Tensor] = {}
        if mixer is None or result is None:
            features, labels = self.extract_feat(batch.images), batch.labels
        else:
            if mixer.reads_pass:
                features, result, added = self._after_pass(mixer, result, batch)
            else:
                features = self.extract_feat(result.images)
            result = _batch_mean(result) if self.ratio_reduce else result
            labels = result.mix_scores(batch.labels)
        # The samples are copied after the pass has started, so that a GPU computes meanwhile.
        return batch.head_loss(features, labels) | added, result

    def _after_pass(
        self, mixer: Mixer, result: MixResult, batch: TrainingBatch
    ) -> tuple[tuple, MixResult, dict[str, Tensor]]:
        """The training pass over the mixed images, and what the mixer makes of it."""
        features, scores, tokens = self._recorded_features(result.images, mixer.read_layer)
        return features, *mixer.after_pass(result, MixedPass(batch, scores, tokens, features))

    @torch.compiler.disable  # A compiled backbone would not call the hooks.
    def _recorded_features(
        self, images: Tensor, layer: int | None, saliency: str = 'attention'
    ) -> tuple[tuple, PatchScores, Tensor]:
        """The training pass, the saliency of one of its layers, and its tokens [B, L, C] after the last norm."""
        with recorded(self.backbone, images, layer, saliency) as recording:
            features = self.extract_feat(images)
        return features, *recording.finished()

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


@torch.compiler.disable  # Draws from numpy.
def _draw(augments: RandomBatchAugment | None, batch_size: int, alike: bool = False) -> Mixer | None:
    """Draw one of the augments; None for one image, if the batch stays unmixed, and without augments.

    With `alike`, all ranks take the draw of the first one.
    """
    if augments is None:
        return None
    drawn = torch.tensor(np.random.choice(len(augments.augments), p=augments.probs))
    if alike:
        broadcast(drawn)
    augment = augments.augments[int(drawn)]
    return None if augment is None or batch_size < 2 else as_mixer(augment)


def _batch_mean(result: MixResult) -> MixResult:
    """The mix with the mean ratio of the batch for every image."""
    partner = result.partner_ratio
    return replace(
        result,
        ratio=result.ratio.mean().expand_as(result.ratio),
        partner_ratio=None if partner is None else partner.mean().expand_as(partner),
    )


def _check_schedule(mixer: MaskMixer, backbone: nn.Module) -> None:
    """Refuse a mixer that says how tokens merge where the clean pass scores, whose merging is the backbone's."""
    for key in ('num_merge', 'inflection', 'prop_attn'):
        value, own = getattr(mixer, key), getattr(backbone, key)
        default = signature(MaskMixer).parameters[key].default
        if value != default and (key == 'num_merge' or value != own):
            name, where = type(mixer).__name__, type(backbone).__name__
            raise ValueError(
                f'{name}: {key}={value!r} has no effect where the clean pass of `{where}` scores, with its own '
                f"{key}={own!r}; remove {key} (and mask='topk') from {name}, or set backbone.merge_in=('test',)"
            )
    if mixer.score_scale != 1:
        raise ValueError(
            f'{type(mixer).__name__}: score_scale={mixer.score_scale!r} has no effect where the clean pass of '
            f'`{type(backbone).__name__}` scores whole images; remove it'
        )


def _build_augments(cfg: dict) -> RandomBatchAugment:
    """Build the augments of a ``train_cfg``."""
    if not cfg.get('augments') or not set(cfg) <= {'augments', 'probs'}:
        raise ValueError(
            f'model.train_cfg={dict(cfg)} must hold augments, one batch augment or a list of them, and may hold probs'
        )
    # A copy, because RandomBatchAugment appends to the list of probabilities that it is given.
    return RandomBatchAugment(**deepcopy(cfg))
