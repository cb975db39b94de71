"""VLMTuner: supervised fine-tuning and preference tuning of vision-language models (https://arxiv.org/abs/2510.23479)."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass

import torch
from mmengine.dist import all_reduce
from mmengine.registry import MODELS
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor, nn

from ..batch_augments import as_mixer
from ..vision_encoders import gathered, join_units, sharded_units
from .base_tuner import BaseTuner, ForwardPass
from .mix_canvases import CanvasMix, mix_canvases

_NO_PARTNER = (
    'VLMTuner: no image of this batch found a partner of another sample, so it is only supervised fine-tuning. Set '
    "batch_size >= 2 (per process and micro-batch), or a mixer that needs none: mixer=dict(type='SalientBlur')"
)


@dataclass
class Losers:
    """What loses against a batch.

    Args:
        batch (dict): The losers, in the same rows; prepared.
        ratio (Tensor, optional): [B], the share of its images that is a row's own; None for rejected answers.
        valid (Tensor): [B] bool, which rows have a loser.
    """

    batch: dict
    ratio: Tensor | None
    valid: Tensor


@MODELS.register_module()
class VLMTuner(BaseTuner):
    """Trains any VLM of this package on the answers of conversations.

    With a head that compares answers (`SimPOHead`), each sample also needs a loser: its own answer given a mixed image
    (with a ``mixer``), or a rejected answer of the records. Text-only samples, and those without a partner for their
    images, are only in the supervised term. One step runs the clean pass, the mixer's scoring pass (up to the scored
    layer; one for each image size if the tower scores images at their own sizes), and the pass over the losers. The
    last :class:`CanvasMix` is kept in ``mix_result`` for figures.

    Precision is that of :class:`BaseTuner`; with `AIAHook`, the clean pass is aligned. New objectives extend
    `AnswerHead`, new mixers `Mixer`: this class knows no others.

    Args:
        vlm (nn.Module | dict): The model, or its config, e.g. ``dict(type='HFVisionLanguageModel', ...)``.
        head (nn.Module | dict, optional): An `AnswerHead`, or its config: ``dict(type='SFTHead')`` or
            ``dict(type='SimPOHead', ...)``. Defaults to the first.
        mixer (Callable | dict, optional): Makes the losers: `MergeMix` (which scores with the VLM's own vision tower,
            or with its ``encoder``), `SalientBlur`, `SwapImages`, another `Mixer`, or a batch augment of MMPretrain
            (Mixup, CutMix, ResizeMix). Defaults to None: the records hold rejected answers.
        chunk_size, processor, generation, data_preprocessor, init_cfg: As for :class:`BaseTuner`.

    Raises:
        ValueError: If head and mixer do not fit each other; in ``loss()``, if head and data do not.
    """

    def __init__(
        self,
        vlm: nn.Module | dict,
        head: nn.Module | dict | None = None,
        mixer: Callable | dict | None = None,
        chunk_size: int = 1024,
        processor: object | dict | None = None,
        generation: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(vlm, head, chunk_size, processor, generation, data_preprocessor, init_cfg)
        self.mixer = BATCH_AUGMENTS.build(deepcopy(mixer)) if isinstance(mixer, dict) else mixer
        self.mix_result: CanvasMix | None = None
        self._check()

    def loss(self, inputs: dict) -> dict[str, Tensor]:
        """Calculate the losses of the head, and what it logs; also ``padding_share``, of the tokens of the clean batch.

        Args:
            inputs (dict): A batch with ``labels``, and with ``rejected`` for pairs of answers (ignored by a head
                without losers): their tokens and, if they have images of their own, image tensors and
                ``original_sizes``.
        """
        if self.mixer is not None and 'rejected' in inputs:
            raise ValueError(
                f'VLMTuner: the records have rejected answers, and mixer={type(self.mixer).__name__} would make losers '
                'as well; remove the mixer and set head.margin to a number, or train on records without them'
            )
        clean = {key: value for key, value in inputs.items() if key != 'rejected'}
        chosen = self._run_vlm(self.vlm.prepare(clean), task='und')
        losses = self._head_losses(clean, chosen, inputs.get('rejected'))
        return losses | self._alignment_losses('und', losses.get('loss_sft')) | self._padding(chosen)

    def _head_losses(self, clean: dict, chosen: ForwardPass, rejected: dict | None) -> dict[str, Tensor]:
        """The losses of the head, given the clean pass."""
        if not self._needs_loser:
            return self.head.loss(*self._score(chosen))
        assert chosen.batch is not None  # Of _run_vlm.
        # The clean pass has prepared its batch. Mixed images have as many tokens, so they share what was prepared.
        losers = self._mixed(chosen.batch) if self.mixer is not None else self._rejected(clean, rejected)
        # All ranks decide together: a pass that some ranks skipped would leave the others waiting in its collectives.
        pairs = losers.valid.sum()
        all_reduce(pairs)
        if pairs == 0:
            if self.mixer is not None and 'pixel_values' in clean:
                warnings.warn(_NO_PARTNER, stacklevel=2)
            return self.head.loss(*self._score(chosen))
        # No graph is kept if no term reaches the losers.
        with nullcontext() if self.head.loser_needs_grad else torch.no_grad():
            lost = self._run_vlm(losers.batch)
        return self.head.loss(*self._score(chosen, lost), losers.ratio, losers.valid)

    def mix(self, inputs: dict) -> CanvasMix | None:
        """Mix the images of a batch; None if it has none that can be mixed.

        Draws from the global states of torch, numpy and random, as the batch augments do.

        Args:
            inputs (dict): A batch, prepared or not.
        """
        assert self.mixer is not None  # Only asked for with a mixer.
        canvases, owner = self.vlm.canvases(inputs)
        tower = self._scoring_tower
        if tower is None:
            return mix_canvases(self.mixer, canvases, owner)
        with gathered(tower) as encoder:
            return mix_canvases(self.mixer, canvases, owner, encoder)

    @property
    def _scoring_tower(self) -> nn.Module | None:
        """The VLM's own encoder, if the mixer scores with it."""
        assert self.mixer is not None  # Only asked for with a mixer.
        return self.vlm.vision_encoder if as_mixer(self.mixer).needs_encoder else None

    @property
    def _needs_loser(self) -> bool:
        return getattr(self.head, 'needs_loser', False)

    def _mixed(self, inputs: dict) -> Losers:
        """The same answers of a prepared batch given mixed images; a sample's ratio is the mean over its images."""
        self.mix_result = None  # Frees the last batch before the next one is mixed.
        if (tower := self._scoring_tower) is not None:  # Which other ranks gather, if it is a unit of FSDP.
            join_units(sharded_units(tower), 'pixel_values' in inputs)
        result = self.mix_result = self.mix(inputs) if 'pixel_values' in inputs else None
        labels = inputs['labels']
        count, share, mixed = torch.zeros(3, len(labels), device=labels.device)
        if result is None:
            return Losers(inputs, torch.ones_like(share), mixed.bool())
        count.index_add_(0, result.owner, torch.ones_like(result.ratio))
        share.index_add_(0, result.owner, result.ratio)
        mixed.index_add_(0, result.owner, result.mixed.float())
        # A sample without images has nothing that was mixed: its ratio is 1.
        ratio = torch.where(count > 0, share / count.clamp(min=1), 1)
        return Losers(self.vlm.with_canvases(inputs, result.images), ratio, mixed > 0)

    def _rejected(self, inputs: dict, rejected: dict | None) -> Losers:
        """The rejected answers of the records, given the same images or the rejected ones."""
        if rejected is None:
            raise ValueError(
                f'{type(self.head).__name__}: nothing to lose against. Set model.mixer, e.g. dict(type="MergeMix"), or '
                'train on records with `chosen` and `rejected` answers'
            )
        valid = torch.ones(len(inputs['labels']), dtype=torch.bool, device=inputs['labels'].device)
        if 'original_sizes' not in rejected:
            return Losers(self.vlm.prepare({**inputs, **rejected}), None, valid)
        # Losers that have images of their own, or none at all, do not see those of the chosen answers.
        own = {key: value for key, value in rejected.items() if key != 'original_sizes' or len(value)}
        return Losers(self.vlm.prepare(own), None, valid)

    def _check(self) -> None:
        if self.mixer is not None and not self._needs_loser:
            raise ValueError(
                f'VLMTuner: mixer={type(self.mixer).__name__} would never be used with head='
                f'{type(self.head).__name__}, which compares with no losers; set head=dict(type="SimPOHead"), or '
                'leave the mixer out'
            )
        needs_ratio = self._needs_loser and self.head.needs_ratio
        if needs_ratio and self.mixer is None:
            raise ValueError(
                f"VLMTuner: head={type(self.head).__name__} with head.margin='mixing' needs a mixer; for given pairs "
                'of answers set a number, e.g. head.margin=0.5'
            )
        if self.mixer is None:
            return
        mixer = as_mixer(self.mixer)
        if reason := mixer.needs_mixup_classifier():
            raise ValueError(f'VLMTuner: mixer={type(mixer).__name__} {reason}, so it works in MixupClassifier only')
        if not mixer.resizes:
            name = type(mixer).__name__
            raise ValueError(
                f'VLMTuner: mixer={name} moves patches, so it needs images of one size: take another mixer'
            )
        if needs_ratio and mixer.no_margin is not None:
            raise ValueError(f'VLMTuner: {mixer.no_margin}')
        if mixer.needs_encoder and self.vlm.vision_encoder is None:
            name = type(mixer).__name__
            raise ValueError(
                f'VLMTuner: {name} cannot score with the vision tower of {type(self.vlm).__name__}; give it an encoder '
                f'of its own: mixer=dict(type="{name}", encoder=dict(...))'
            )
