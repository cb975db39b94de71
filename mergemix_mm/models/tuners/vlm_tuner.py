"""VLMTuner: supervised fine-tuning and preference tuning of vision-language models (https://arxiv.org/abs/2510.23479)."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.model import BaseModel
from mmengine.registry import MODELS, TRANSFORMS
from mmengine.structures import BaseDataElement
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor, nn

from ...functional import answer_logps
from ..batch_augments import MergeMix
from ..heads import AnswerScores, SimPOHead
from ..vision_encoders import gathered
from .mix_canvases import CanvasMix, mix_canvases
from .precision import autocast_to, widen_trained


@dataclass
class Losers:
    """What loses against a batch: a batch of the same rows, and for each row the ratio and whether it has a loser."""

    batch: dict
    ratio: Tensor | None
    valid: Tensor


@MODELS.register_module()
class VLMTuner(BaseModel):
    """Trains any VLM of this package on the answers of conversations.

    With a `SimPOHead` each sample also needs a loser: its own answer given a mixed image (with a ``mixer``), or a
    rejected answer that the records bring. Text-only samples, and those without a partner for their images, take part
    in the supervised term alone. One step runs the clean pass, MergeMix' truncated scoring pass, and the pass over the
    losers. The last :class:`CanvasMix` is kept in ``mix_result`` for figures.

    Weights that train are float32, whatever the ``dtype`` of the VLM is: that of the frozen ones. Where both are in a
    model, it computes under autocast.

    Args:
        vlm (nn.Module | dict): The model, or its config, e.g. ``dict(type='HFVisionLanguageModel', ...)``.
        head (nn.Module | dict, optional): ``dict(type='SFTHead')`` or ``dict(type='SimPOHead', ...)``. Defaults to the
            first.
        mixer (Callable | dict, optional): Makes the losers: `MergeMix` (which scores with the VLM's own vision tower,
            or with its ``encoder``), `SalientBlur`, `SwapImages`, or a batch augment of MMPretrain (Mixup, CutMix,
            ResizeMix). Defaults to None: the records hold rejected answers.
        chunk_size (int): Answer tokens per call of the language model's head. Defaults to 1024.
        processor (object | dict, optional): The model's processor, or its config; decodes the answers when predicting.
            Defaults to None.
        generation (dict, optional): Arguments of ``vlm.generate`` when predicting. Defaults to 32 new tokens, greedy.
        data_preprocessor (dict, optional): Defaults to ``dict(type='VLMDataPreprocessor')``.
        init_cfg (dict, optional): Initialization config. Defaults to None.

    Raises:
        ValueError: if head and mixer do not fit each other; in ``loss()``, if head and data do not.
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
        super().__init__(data_preprocessor or dict(type='VLMDataPreprocessor'), init_cfg)
        self.vlm = MODELS.build(vlm) if isinstance(vlm, dict) else vlm
        self._low_dtype = widen_trained(self.vlm.parameters())
        head = dict(type='SFTHead') if head is None else head
        self.head = MODELS.build(head) if isinstance(head, dict) else head
        self.mixer = BATCH_AUGMENTS.build(deepcopy(mixer)) if isinstance(mixer, dict) else mixer
        self.processor = TRANSFORMS.build(processor) if isinstance(processor, dict) else processor
        self.chunk_size = chunk_size
        self.generation = dict(max_new_tokens=32) if generation is None else generation
        self.mix_result: CanvasMix | None = None
        self._check()

    def forward(self, inputs: dict, data_samples: list[BaseDataElement] | None = None, mode: str = 'tensor'):
        """Run one batch, as MMEngine's loops do.

        Args:
            inputs (dict): a batch of `ConversationCollate`.
            data_samples (list[BaseDataElement], optional): one per row; filled in when predicting.
            mode (str): ``'loss'``, ``'predict'`` or ``'tensor'`` (the last hidden states [B, L, C]).

        Raises:
            ValueError: for another mode.
        """
        with autocast_to(self._low_dtype, inputs['input_ids'].device.type):
            if mode == 'loss':
                return self.loss(inputs)
            if mode == 'predict':
                return self.predict(inputs, data_samples)
            if mode == 'tensor':
                return self.vlm.hidden(self.vlm.prepare(inputs))
        raise ValueError(f"mode={mode!r} must be 'loss', 'predict' or 'tensor'")

    def loss(self, inputs: dict) -> dict[str, Tensor]:
        """Calculate the losses of the head, and what it logs.

        Args:
            inputs (dict): a batch with ``labels``, and with ``rejected`` for pairs of answers.
        """
        clean = {key: value for key, value in inputs.items() if key != 'rejected'}
        chosen = self._read(clean)
        if not isinstance(self.head, SimPOHead):
            return self.head.loss(*self._score(chosen))
        losers = self._mixed(clean) if self.mixer is not None else self._rejected(clean, inputs.get('rejected'))
        # Decided by all ranks together: a pass that some ranks leave out would leave the others waiting.
        pairs = losers.valid.sum()
        all_reduce(pairs)
        if pairs == 0:
            return self.head.loss(*self._score(chosen))
        with nullcontext() if self.head.loser_needs_grad else torch.no_grad():
            rejected = self._read(losers.batch)
        return self.head.loss(*self._score(chosen, rejected), losers.ratio, losers.valid)

    @torch.no_grad()
    def predict(self, inputs: dict, data_samples: list[BaseDataElement]) -> list[BaseDataElement]:
        """Generate answers: ``pred_answer`` (str) and ``pred_confidence``, their probability in [0, 1].

        Args:
            inputs (dict): a batch of prompts.
            data_samples (list[BaseDataElement]): one per row; written to.
        """
        if self.processor is None:
            raise ValueError('VLMTuner: predicting decodes answers; set model.processor to the processor of the data')
        generated = self.vlm.generate(self.vlm.prepare(inputs), **self.generation)
        answers = self.processor.batch_decode(generated.sequences, skip_special_tokens=True)
        for sample, answer, logp in zip(data_samples, answers, generated.logps.tolist(), strict=True):
            sample.pred_answer = answer.strip()
            sample.pred_confidence = math.exp(logp)
        return data_samples

    def answer_scores(self, inputs: dict) -> AnswerScores:
        """Log-probabilities of the labelled tokens of a batch."""
        return self._score(self._read(inputs))[0]

    def _read(self, inputs: dict) -> tuple[Tensor, Tensor]:
        """One forward of the VLM: last hidden states [B, L, C] and labels [B, L]."""
        batch = self.vlm.prepare(inputs)
        return self.vlm.hidden(batch), batch['labels']

    def _score(self, *passes: tuple[Tensor, Tensor]) -> list[AnswerScores]:
        """Log-probabilities of the labelled tokens of one or two passes.

        Both in one call, since each call makes a gradient of the size of the head's weight.
        """
        length = max(labels.size(1) for _, labels in passes)
        hidden = torch.cat([F.pad(hidden, (0, 0, 0, length - hidden.size(1))) for hidden, _ in passes])
        labels = torch.cat([F.pad(labels, (0, length - labels.size(1)), value=-100) for _, labels in passes])
        sums, lengths = answer_logps(hidden, self._output(), labels, chunk_size=self.chunk_size)
        parts = zip(sums.chunk(len(passes)), lengths.chunk(len(passes)), strict=True)
        return [AnswerScores(*part) for part in parts]

    def mix(self, inputs: dict) -> CanvasMix | None:
        """Mix the images of a batch; None if there are none that could be mixed.

        Draws from the global states of torch, numpy and random, as the batch augments do.
        """
        canvases, owner = self.vlm.canvases(inputs)
        if self._own_encoder is None:
            return mix_canvases(self.mixer, canvases, owner)
        with gathered(self._own_encoder) as encoder:
            return mix_canvases(self.mixer, canvases, owner, encoder)

    @property
    def _own_encoder(self) -> nn.Module | None:
        """The VLM's vision tower, if it is the one that scores."""
        needed = isinstance(self.mixer, MergeMix) and self.mixer.encoder is None
        return self.vlm.vision_encoder if needed else None

    def _mixed(self, inputs: dict) -> Losers:
        """The same answers given mixed images: the margin of a sample comes from the mean ratio of its images."""
        self.mix_result = None  # Let go of the last batch before the next one is mixed.
        result = self.mix_result = self.mix(inputs) if 'pixel_values' in inputs else None
        labels = inputs['labels']
        count, share, mixed = torch.zeros(3, len(labels), device=labels.device)
        if result is None:
            return Losers(inputs, torch.ones_like(share), mixed.bool())
        count.index_add_(0, result.owner, torch.ones_like(result.ratio))
        share.index_add_(0, result.owner, result.ratio)
        mixed.index_add_(0, result.owner, result.mixed.float())
        ratio = torch.where(count > 0, share / count.clamp(min=1), 1)
        return Losers(self.vlm.with_canvases(inputs, result.images), ratio, mixed > 0)

    def _rejected(self, inputs: dict, rejected: dict | None) -> Losers:
        """The rejected answers of the records, given the same images."""
        if rejected is None:
            raise ValueError(
                'SimPOHead: nothing to lose against. Set model.mixer, e.g. dict(type="MergeMix"), or train on records '
                'with `chosen` and `rejected` answers'
            )
        valid = torch.ones(len(inputs['labels']), dtype=torch.bool, device=inputs['labels'].device)
        return Losers({**inputs, **rejected}, None, valid)

    def _output(self) -> Tensor | Callable[[Tensor], Tensor]:
        """The head of the language model: its weight where that is all there is, which needs the least memory.

        A head that somebody hooked or wrapped (FSDP, DeepSpeed, LoRA) has to be called.
        """
        head = self.vlm.head
        plain = type(head) is nn.Linear and head.bias is None
        hooked = plain and (head._forward_pre_hooks or head._forward_hooks)
        return head.weight if plain and not hooked else head

    def _check(self) -> None:
        preference = isinstance(self.head, SimPOHead)
        if self.mixer is not None and not preference:
            raise ValueError(
                f'VLMTuner: mixer={type(self.mixer).__name__} would never be used with head='
                f'{type(self.head).__name__}; set head=dict(type="SimPOHead"), or leave the mixer out'
            )
        mixing = preference and self.head.margin == 'mixing'
        if mixing and self.mixer is None:
            raise ValueError(
                "VLMTuner: head.margin='mixing' needs a mixer; for given pairs of answers set a number, "
                'e.g. head.margin=0.5'
            )
        if mixing and getattr(self.mixer, 'ratio', None) == 'gaussian':
            raise ValueError(
                "VLMTuner: mixer.ratio='gaussian' does not look at the mask and makes no margin; "
                "set 'attention' or 'area'"
            )
        if isinstance(self.mixer, MergeMix) and self.mixer.encoder is None and self.vlm.vision_encoder is None:
            raise ValueError(
                f'VLMTuner: MergeMix cannot score with the vision tower of {type(self.vlm).__name__}; give it an '
                'encoder of its own: mixer=dict(type="MergeMix", encoder=dict(...))'
            )
