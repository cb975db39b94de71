"""What the tuners share: the forward pass, scoring answers, generating, and the alignment of attention."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from mmengine.model import BaseModel, initialize
from mmengine.registry import MODELS, TRANSFORMS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ...functional import answer_logps
from ...utils.numbers import check_number
from ..attention import InteractionAlignment, interaction_spans
from ..heads import AnswerScores
from ..precision import autocast_to, keeps_files, widen_trained
from ..vlms.quantization import is_quantized


class ForwardPass(NamedTuple):
    """What one forward of the VLM leaves for scoring. Shapes: B samples, L tokens, C channels.

    Args:
        hidden (Tensor): [B, L, C], the last hidden states.
        labels (Tensor): [B, L] int64, -100 where nothing is learnt.
        batch (dict, optional): The prepared batch. Defaults to None.
    """

    hidden: Tensor
    labels: Tensor
    batch: dict | None = None


class BaseTuner(BaseModel):
    """A model that trains a VLM on labelled tokens; a subclass implements `loss`.

    Weights that train are kept in float32, whatever the ``dtype`` of the VLM is; that is the dtype of the frozen ones.
    A model with both computes under autocast.

    Args:
        vlm (nn.Module | dict): The model, or its config.
        head (nn.Module | dict, optional): What is learnt, an `AnswerHead`. Defaults to ``dict(type='SFTHead')``.
        chunk_size (int): Labelled tokens per call of the language-model head. Defaults to 1024.
        processor (object | dict, optional): The model's processor, or its config; decodes the answers when predicting.
            Defaults to None.
        generation (dict, optional): Arguments of ``vlm.generate`` when predicting. Defaults to 32 new tokens, greedy.
        data_preprocessor (dict, optional): Defaults to ``dict(type='VLMDataPreprocessor')``.
        init_cfg (dict, optional): Initialization config. Defaults to None.
    """

    # The tasks whose attention can be aligned: understanding, and in subclasses generation ('gen').
    tasks: tuple[str, ...] = ('und',)

    def __init__(
        self,
        vlm: nn.Module | dict,
        head: nn.Module | dict | None = None,
        chunk_size: int = 1024,
        processor: object | dict | None = None,
        generation: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor or dict(type='VLMDataPreprocessor'), init_cfg)
        self.vlm = MODELS.build(vlm) if isinstance(vlm, dict) else vlm
        self.widen_trained()
        head = dict(type='SFTHead') if head is None else head
        self.head = MODELS.build(head) if isinstance(head, dict) else head
        self.processor: Any = TRANSFORMS.build(processor) if isinstance(processor, dict) else processor
        check_number(f'{type(self).__name__}: chunk_size', chunk_size, 'an integer >= 1', least=1, integer=True)
        self.chunk_size = chunk_size
        self.generation = dict(max_new_tokens=32) if generation is None else generation
        # Set by AIAHook while the model trains.
        self.alignment: InteractionAlignment | None = None

    def widen_trained(self) -> None:
        """Cast weights that train to float32."""
        # What forward autocasts to; None for a model of one precision.
        self._low_dtype = widen_trained(self.vlm.parameters())

    def init_weights(self) -> None:
        """As in MMEngine, which records the mean of every parameter. No record is made of quantized weights, which have
        no mean, and of weights that would have to be read from their files.
        """
        if not is_quantized(self) and not keeps_files():
            super().init_weights()
            return
        if self.init_cfg:
            initialize(self, self.init_cfg)
        for child in self.children():
            if hasattr(child, 'init_weights'):
                child.init_weights()
        self._is_init = True

    def forward(self, inputs: dict, data_samples: list[BaseDataElement] | None = None, mode: str = 'tensor'):
        """Run one batch, as MMEngine's loops do.

        Args:
            inputs (dict): A batch of `ConversationCollate`.
            data_samples (list[BaseDataElement], optional): One per row; filled in when predicting.
            mode (str): ``'loss'``, ``'predict'`` or ``'tensor'`` (the last hidden states [B, L, C]).

        Raises:
            ValueError: For another mode.
        """
        with autocast_to(self._low_dtype, inputs['input_ids'].device.type):
            if mode == 'loss':
                return self.loss(inputs)
            if mode == 'predict':
                return self.predict(inputs, data_samples or [])
            if mode == 'tensor':
                return self.vlm.hidden(self.vlm.prepare(inputs))
        raise ValueError(f"mode={mode!r} must be 'loss', 'predict' or 'tensor'")

    @torch.no_grad()
    def predict(self, inputs: dict, data_samples: list[BaseDataElement]) -> list[BaseDataElement]:
        """Generate answers: ``pred_answer`` (str) and ``pred_confidence``, their probability in [0, 1].

        If a batch has labels, the labelled answers are scored instead: ``answer_logp`` (float), the sum of their
        tokens' log-probabilities, and ``answer_length`` (int), the number of these tokens.

        Args:
            inputs (dict): A batch of prompts, or of whole conversations with ``labels``.
            data_samples (list[BaseDataElement]): One per row; written to.
        """
        if 'labels' in inputs:
            scores = self.answer_scores(inputs)
            for sample, logp, length in zip(data_samples, scores.sums.tolist(), scores.lengths.tolist(), strict=True):
                sample.answer_logp, sample.answer_length = logp, length
            return data_samples
        if self.processor is None:
            raise ValueError(
                f'{type(self).__name__}: predicting decodes answers; set model.processor to that of the data'
            )
        generated = self.vlm.generate(self.vlm.prepare(inputs), **self.generation)
        answers = self.processor.batch_decode(generated.sequences, skip_special_tokens=True)
        for sample, answer, logp in zip(data_samples, answers, generated.logps.tolist(), strict=True):
            sample.pred_answer = answer.strip()
            sample.pred_confidence = math.exp(logp)
        return data_samples

    def answer_scores(self, inputs: dict) -> AnswerScores:
        """Log-probabilities of the labelled tokens of a batch."""
        return self._score(self._run_vlm(self.vlm.prepare(inputs)))[0]

    def _run_vlm(self, batch: dict, task: str | None = None, dropped: Tensor | None = None) -> ForwardPass:
        """Run the VLM once, without its head.

        Args:
            batch (dict): A prepared batch.
            task (str, optional): ``'gen'`` or ``'und'``: the alignment, if there is one, records this pass. Defaults
                to None: the pass is not recorded.
            dropped (Tensor, optional): [B] bool, samples without a prompt, which are not aligned. Defaults to None.
        """
        kwargs = {}
        if task is not None and self.alignment is not None:
            spans = interaction_spans(task, self.vlm.modality(batch), batch['labels'], dropped)
            kwargs = self.alignment.kwargs(*spans)
        return ForwardPass(self.vlm.hidden(batch, **kwargs), batch['labels'], batch)

    def _alignment_losses(self, task: str, ntp_loss: Tensor | None) -> dict[str, Tensor]:
        """The alignment's loss on the pass that it recorded, and what it logs; empty without an alignment."""
        return {} if self.alignment is None else self.alignment.loss(task, ntp_loss)

    def _padding(self, run: ForwardPass) -> dict[str, Tensor]:
        """For the log: ``padding_share``, the share of padding among the tokens that the language model computed."""
        # Without a mask there is no padding, and a packed batch is computed without it.
        packed = getattr(self.vlm, 'packed', False)
        mask = None if packed or run.batch is None else run.batch.get('attention_mask')
        zero = run.hidden.new_zeros((), dtype=torch.float32)
        return dict(padding_share=zero if mask is None else 1 - mask.float().mean())

    def _score(self, *passes: ForwardPass, head: nn.Module | None = None) -> list[AnswerScores]:
        """Log-probabilities of the labelled tokens of one or two passes, by the VLM's head unless another is given."""
        # All passes share one call: each call allocates a gradient of the size of the head's weight.
        hidden, labels = [one.hidden for one in passes], [one.labels for one in passes]
        sums, lengths = answer_logps(hidden, self._output(head), labels, chunk_size=self.chunk_size)
        sizes = [len(rows) for rows in labels]
        counted = zip(sums.split(sizes), lengths.split(sizes), passes, strict=True)
        return [AnswerScores(total, length, one.batch) for total, length, one in counted]

    def _output(self, head: nn.Module | None = None) -> Tensor | Callable[[Tensor], Tensor]:
        """The head that makes logits: the VLM's unless another is given; its weight if it has nothing else.

        A bare weight needs the least memory. A head with hooks or a wrapper (LoRA) has to be called.
        """
        head = self.vlm.head if head is None else head
        plain = type(head) is nn.Linear and head.bias is None
        hooked = plain and (head._forward_pre_hooks or head._forward_hooks)
        return head.weight if plain and not hooked else head
