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
    """The tokens of a batch whose attention counts, and those that it must go to.

    - ``'und'`` (understanding): from labelled tokens (the answers of all turns with their end tokens) to image tokens;
    - ``'gen'`` (generation): from image tokens to text (BOS and template included); markers and padding are neither.

    A query is the token itself, not the position before it that predicts it. An answer that stands before an image, in
    a conversation of several turns, counts with the 0 that it can pay to it.

    Args:
        task (str): ``'und'`` or ``'gen'``.
        modality (Tensor): [B, L] int64, as `VisionLanguageModel.modality` gives it for a prepared batch.
        labels (Tensor): [B, L] int64 of the prepared batch, not shifted; -100 where nothing is learnt.
        dropped (Tensor, optional): [B] bool, samples whose prompt was dropped for guidance: they get no queries, so
            that they are left out. Defaults to None: none.

    Returns:
        tuple[Tensor, Tensor]: queries and keys, [B, L] bool each.

    Raises:
        ValueError: for another task.
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
    """What the layers recorded in one pass, without gradient.

    Args:
        task (str): ``'gen'`` or ``'und'``.
        sums (Tensor): [layers] float32, the intensity summed over the samples that count.
        count (Tensor): number of these samples, [] int64.
    """

    task: str
    sums: Tensor
    count: Tensor


class InteractionAlignment:
    """Records the interaction of a model's layers and compares it with targets.

    `AIAHook` gives one to a tuner, whose clean pass then takes :meth:`kwargs` and whose losses get :meth:`loss`. It
    belongs to no module: nothing of it is in a checkpoint.

    Args:
        model (nn.Module): The VLM; anything that :class:`InteractionRecorder` takes.
        criterion (AIALoss): Targets and weights.
        layers (Iterable[int], optional): Layers that are recorded and aligned. Defaults to None: all.
        backend (str): ``'auto'``, ``'fused'``, ``'lse'`` or ``'eager'``, see
            :func:`mergemix_mm.functional.attention_with_intensity`. Defaults to ``'fused'``.
        tasks (Iterable[str]): Tasks that will come, whose targets are looked up at once. Defaults to both.

    Raises:
        ValueError: if the model cannot be recorded, or a task has no targets that fit its layers.
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
        """What ``hidden(batch, **kwargs)`` takes to be recorded; masks [B, L] bool, see :func:`interaction_spans`."""
        self._recording = self.recorder.recording(query_mask, key_mask)
        return self._recording.attention_kwargs

    def loss(self, task: str, ntp_loss: Tensor | None = None) -> dict[str, Tensor]:
        """Compare what the last pass recorded with the targets of its task.

        The mean over all ranks of the loss is that over all their samples. Samples without queries or keys are left
        out.

        Args:
            task (str): ``'gen'`` or ``'und'``.
            ntp_loss (Tensor, optional): The next-token loss of the pass, which a ratio of losses needs. Defaults to
                None.

        Returns:
            dict[str, Tensor]: ``loss_aia_<task>``, and for the log ``interaction_<task>``, the mean over layers and
            samples of this rank, if any count.
        """
        recording, self._recording = self._recording, None
        assert recording is not None  # The loss follows a pass that was recorded.
        intensity = recording.intensity()
        valid = recording.valid.to(intensity.device)
        layers = self.recorder.layers
        share = valid.sum() / mean_over_ranks(valid.sum())
        loss = self.criterion(intensity, task, valid, ntp_loss, layers, self.recorder.num_layers, share)
        sums = torch.where(valid, intensity.detach(), 0).sum(dim=1)
        self.last = LayerIntensity(task, sums, valid.sum())
        losses = {f'loss_aia_{task}': loss}
        if valid.any():
            losses[f'interaction_{task}'] = mean_where(intensity.mean(dim=0), valid)
        return losses
