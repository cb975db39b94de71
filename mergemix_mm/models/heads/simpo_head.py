"""Mixed SimPO: the answer given the clean image wins against the same answer given the mixed image."""

from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor

from ...utils.distributed import mean_over_ranks, mean_where
from ...utils.numbers import check_number
from ..losses import SimPOLoss
from .base import AnswerScores
from .sft_head import SFTHead


@MODELS.register_module()
class SimPOHead(SFTHead):
    """Supervised fine-tuning plus SimPO (MergeMix, https://arxiv.org/abs/2510.23479; SimPO, arXiv 2405.14734).

    L = sft_weight * L_sft(chosen) + L_simpo(beta * (c - r) - margin), with c, r the mean log-probabilities per answer
    token (:func:`mergemix_mm.functional.simpo_loss`). Samples without a loser (text-only, no partner) are only in the
    first term.

    Args:
        beta (float): Of :class:`SimPOLoss`. Defaults to 1.0, as MergeMix is released; SimPO itself starts from 2.0.
        margin (str | float): ``'mixing'``: 1 - the share of the image that is its own, for each sample. Or a number,
            SimPO's gamma (= beta * gamma_beta_ratio), which plain pairs of answers need. Defaults to ``'mixing'``.
        label_smoothing (float): Of :class:`SimPOLoss`. Defaults to 0.0.
        loss_type (str): Of :class:`SimPOLoss`. Defaults to ``'sigmoid'``.
        sft_weight (float): Weight of the first term, >= 0. Defaults to 1.0.
        detach_loser (bool): Whether the preference term gives the loser no gradient, as in the release. Defaults to
            False.
        loser_sft_weight (float): Weight of a third term, the cross-entropy of the answers given the mixed images,
            >= 0. Defaults to 0.0.
        init_cfg (dict, optional): Initialization config. Defaults to None.

    Raises:
        ValueError: If an argument is out of its range.
    """

    needs_loser = True

    def __init__(
        self,
        beta: float = 1.0,
        margin: str | float = 'mixing',
        label_smoothing: float = 0.0,
        loss_type: str = 'sigmoid',
        sft_weight: float = 1.0,
        detach_loser: bool = False,
        loser_sft_weight: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not (isinstance(margin, str) and margin == 'mixing'):
            check_number('SimPOHead: margin', margin, "'mixing' or a number that is finite")
        for name, weight in dict(sft_weight=sft_weight, loser_sft_weight=loser_sft_weight).items():
            check_number(f'SimPOHead: {name}', weight, '>= 0 and finite', least=0)
        self.simpo = SimPOLoss(beta, label_smoothing, loss_type)
        self.margin = margin
        self.sft_weight = sft_weight
        self.detach_loser = detach_loser
        self.loser_sft_weight = loser_sft_weight

    @property
    def needs_ratio(self) -> bool:
        """Whether the margin of a pair comes from the mixing ratio."""
        return self.margin == 'mixing'

    @property
    def loser_needs_grad(self) -> bool:
        """False if no term reaches the losers."""
        return not self.detach_loser or self.loser_sft_weight > 0

    def loss(
        self,
        chosen: AnswerScores,
        rejected: AnswerScores | None = None,
        ratio: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Calculate the losses; the arguments are those of :meth:`AnswerHead.loss`.

        Returns:
            dict[str, Tensor]: ``loss_sft``, with losers ``loss_simpo`` and (if weighted) ``loss_sft_loser``. For the
            log, besides those of :class:`SFTHead`, means over the pairs of this rank, if it has any:
            ``reward_chosen`` and ``reward_rejected`` (beta times the mean log-probability), ``reward_margin`` (their
            difference), ``reward_accuracy`` (how often it is positive), ``logp_rejected`` and ``ratio_mean``.
        """
        losses = super().loss(chosen)
        losses['loss_sft'] = self.sft_weight * losses['loss_sft']
        if rejected is None:
            return losses
        assert valid is not None  # Always given with losers.
        # Truncation may have cut an answer away: then there is nothing to compare.
        valid = valid & (chosen.lengths > 0) & (rejected.lengths > 0)
        losses['loss_simpo'] = self._preference(chosen.means, rejected.means, ratio, valid)
        if self.loser_sft_weight:
            # Zero sums and lengths leave a sample out of the cross-entropy.
            own = AnswerScores(rejected.sums * valid, rejected.lengths * valid)
            losses['loss_sft_loser'] = self.loser_sft_weight * self.cross_entropy(own)
        return losses | self._log(chosen.means, rejected.means, ratio, valid)

    def _preference(self, chosen: Tensor, rejected: Tensor, ratio: Tensor | None, valid: Tensor) -> Tensor:
        margin: Any = self.margin
        if self.needs_ratio:
            assert ratio is not None  # Given where it is needed.
            margin = 1 - ratio
        rejected = rejected.detach() if self.detach_loser else rejected
        losses = self.simpo(chosen, rejected, margin)
        # Not a product: the loss of a row without a pair may be infinite, and 0 times infinity is NaN.
        return torch.where(valid, losses, 0).sum() / mean_over_ranks(valid.sum())

    @torch.no_grad()
    def _log(self, chosen: Tensor, rejected: Tensor, ratio: Tensor | None, valid: Tensor) -> dict[str, Tensor]:
        if not valid.any():
            return {}
        beta = self.simpo.beta
        values = dict(
            reward_chosen=beta * chosen,
            reward_rejected=beta * rejected,
            reward_margin=beta * (chosen - rejected),
            reward_accuracy=(chosen > rejected).float(),
            logp_rejected=rejected,
        )
        if ratio is not None:
            values['ratio_mean'] = ratio
        return {name: mean_where(value, valid) for name, value in values.items()}
