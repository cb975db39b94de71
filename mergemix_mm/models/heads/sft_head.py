"""Supervised fine-tuning: the cross-entropy of the answer tokens."""

import torch
from mmengine.dist import all_reduce
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor

from .base import AnswerScores


@MODELS.register_module()
class SFTHead(BaseModule):
    """Cross-entropy per answer token, averaged over all answer tokens of all ranks.

    A long answer counts with all its tokens, on whichever rank it is. With gradient accumulation the average is taken
    over each micro-batch, and the micro-batches count alike: this equals one large batch where they hold equal numbers
    of answer tokens.

    Args:
        init_cfg (dict, optional): Initialization config. Defaults to None.
    """

    def loss(self, chosen: AnswerScores) -> dict[str, Tensor]:
        """Calculate the loss.

        Args:
            chosen (AnswerScores): of the answers to be learnt.

        Returns:
            dict[str, Tensor]: ``loss_sft``, and for the log ``logp_chosen`` (mean log-probability per answer token,
            mean over the samples of this rank) and ``answer_length`` (tokens per sample). Of several ranks, one has its
            part of the loss, which is larger where its answers are longer.
        """
        answered = chosen.lengths > 0
        return dict(
            loss_sft=self.cross_entropy(chosen),
            logp_chosen=mean_where(chosen.means, answered),
            answer_length=mean_where(chosen.lengths.float(), answered),
        )

    def cross_entropy(self, scores: AnswerScores) -> Tensor:
        """-log p per answer token; the mean over all ranks of this value is the one over all their tokens."""
        return -scores.sums.sum() / mean_over_ranks(scores.lengths.sum())


def mean_over_ranks(count: Tensor) -> Tensor:
    """Mean of a number over the ranks, at least one token or pair per all of them: a divisor that DDP's mean undoes."""
    count = count.detach().float()
    all_reduce(count, 'mean')
    return torch.where(count > 0, count, torch.ones_like(count))


def mean_where(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of values [B] over the valid ones, for the log; 0 without any."""
    return torch.where(valid, values.detach(), 0).sum() / valid.sum().clamp(min=1)
