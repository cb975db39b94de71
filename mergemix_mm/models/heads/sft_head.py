"""Supervised fine-tuning: the cross-entropy of the answer tokens."""

from mmengine.registry import MODELS
from torch import Tensor

from ...utils.distributed import mean_over_ranks, mean_where
from .base import AnswerHead, AnswerScores


@MODELS.register_module()
class SFTHead(AnswerHead):
    """Cross-entropy per answer token, averaged over all answer tokens of all ranks.

    A long answer counts with all its tokens, on whichever rank it is. With gradient accumulation the average is taken
    over each micro-batch, and all micro-batches count equally: this equals one large batch where they hold equal
    numbers of answer tokens.

    Args:
        init_cfg (dict, optional): Initialization config. Defaults to None.
    """

    def loss(
        self,
        chosen: AnswerScores,
        rejected: AnswerScores | None = None,
        ratio: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Calculate the loss of the chosen answers; the other arguments are ignored, see :meth:`AnswerHead.loss`.

        Returns:
            dict[str, Tensor]: ``loss_sft``, and for the log ``logp_chosen`` (mean log-probability per answer token,
            mean over the samples of this rank) and ``answer_length`` (tokens per sample). With several ranks,
            ``loss_sft`` is this rank's part of the loss, which is larger where its answers are longer.
        """
        answered = chosen.lengths > 0
        return dict(
            loss_sft=self.cross_entropy(chosen),
            logp_chosen=mean_where(chosen.means, answered),
            answer_length=mean_where(chosen.lengths.float(), answered),
        )

    def cross_entropy(self, scores: AnswerScores) -> Tensor:
        """-log p per answer token; the mean of this value over all ranks is the mean over all their tokens."""
        return -scores.sums.sum() / mean_over_ranks(scores.lengths.sum())
