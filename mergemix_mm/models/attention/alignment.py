"""Attention interaction alignment of a model that trains (https://arxiv.org/abs/2511.22663)."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...functional.preference import IGNORE_INDEX
from ...utils.distributed import mean_over_ranks, mean_where
from ..losses import AIALoss
from ..vlms.base import IMAGE, TEXT
from .interaction_recorder import InteractionRecorder, Recording


def interaction_spans(
    task: str, modality: Tensor, labels: Tensor, dropped: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The tokens whose attention is measured (queries), and the tokens that it has to reach (keys).

    - ``'und'`` (understanding): from labelled tokens (the answers of all turns with their end tokens) to image tokens;
    - ``'gen'`` (generation): from image tokens to text (BOS and template included); markers and padding are neither.

    A query is the token itself, not the position before it that predicts it. In a conversation of several turns, an
    answer before an image cannot attend to it, and counts with an intensity of 0.

    Args:
        task (str): ``'und'`` or ``'gen'``.
        modality (Tensor): [B, L] int64, as `VisionLanguageModel.modality` gives it for a prepared batch.
        labels (Tensor): [B, L] int64 of the prepared batch, not shifted; -100 where nothing is learnt.
        dropped (Tensor, optional): [B] bool, samples whose prompt was dropped for guidance. They get no queries, which
            leaves them out. Defaults to None: none.

    Returns:
        tuple[Tensor, Tensor]: queries and keys, [B, L] bool each.

    Raises:
        ValueError: For another task.
    """
    if task == 'und':
        queries, keys = labels != IGNORE_INDEX, modality == IMAGE
    elif task == 'gen':
        queries, keys = modality == IMAGE, modality == TEXT
    else:
        raise ValueError(f"interaction_spans: task={task!r} must be 'gen' or 'und'")
    return queries if dropped is None else queries & ~dropped[:, None], keys


@dataclass
class LayerIntensity:
    """The intensities that the layers recorded in one pass, without gradient.

    Args:
        task (str): ``'gen'`` or ``'und'``.
        sums (Tensor): [layers] float32, the intensity summed over the samples that count.
        count (Tensor): [] int64, the number of these samples.
    """

    task: str
    sums: Tensor
    count: Tensor


class InteractionAlignment:
    """Records the interaction of a model's layers and compares it with targets.

    `AIAHook` gives one to a tuner. The tuner's clean pass then takes :meth:`kwargs`, and its losses include
    :meth:`loss`. The alignment is not a module, so checkpoints hold nothing of it.

    Args:
        model (nn.Module): The VLM; anything that :class:`InteractionRecorder` takes.
        criterion (AIALoss): Targets and weights.
        layers, backend: Of :class:`InteractionRecorder`; the recorded layers are aligned.
        tasks (Iterable[str]): Tasks that the model will train, whose targets are looked up at once. Defaults to both.

    Raises:
        ValueError: If the model cannot be recorded, or a task has no targets that fit its layers.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: AIALoss,
        layers: Iterable[int] | None = None,
        backend: str = 'fused',
        tasks: Iterable[str] = ('gen', 'und'),
    ) -> None:
        self.recorder = InteractionRecorder(model, layers, backend)
        self.criterion = criterion
        self.curves = {task: criterion.curve(task, self.recorder.num_layers) for task in tasks}
        self.last: LayerIntensity | None = None
        self._recording: Recording | None = None

    def kwargs(self, query_mask: Tensor, key_mask: Tensor) -> dict:
        """Arguments with which ``hidden(batch, **kwargs)`` is recorded; masks as from :func:`interaction_spans`."""
        self._recording = self.recorder.recording(query_mask, key_mask)
        return self._recording.attention_kwargs

    def loss(self, task: str, ntp_loss: Tensor | None = None) -> dict[str, Tensor]:
        """Compare what the last pass recorded with the targets of its task.

        Samples without queries or keys are left out. The mean of the loss over all ranks is the mean over all their
        samples.

        Args:
            task (str): ``'gen'`` or ``'und'``.
            ntp_loss (Tensor, optional): The next-token loss of the pass, see :class:`AIALoss`. Defaults to None.

        Returns:
            dict[str, Tensor]: ``loss_aia_<task>``, and for the log ``interaction_<task>``, the mean over layers and
            samples of this rank, if any sample counts.

        Raises:
            RuntimeError: If no pass was recorded since the last call.
        """
        recording, self._recording = self._recording, None
        if recording is None:
            raise RuntimeError('the alignment has no recorded pass: run one with kwargs() before every loss()')
        intensity = recording.intensity()
        valid = recording.valid.to(intensity.device)
        layers = self.recorder.layers
        # The loss is a mean over the samples of this rank, and ranks have different numbers of them.
        share = valid.sum() / mean_over_ranks(valid.sum())
        loss = self.criterion(intensity, task, valid, ntp_loss, layers, self.recorder.num_layers, share)
        sums = torch.where(valid, intensity.detach(), 0).sum(dim=1)
        self.last = LayerIntensity(task, sums, valid.sum())
        losses = {f'loss_aia_{task}': loss}
        if valid.any():
            losses[f'interaction_{task}'] = mean_where(intensity.mean(dim=0), valid)
        return losses
