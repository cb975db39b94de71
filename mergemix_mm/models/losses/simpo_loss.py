"""SimPO as a loss module (https://arxiv.org/abs/2405.14734), with margins per pair as mixed SimPO takes them."""

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...functional import simpo_loss
from ...utils.numbers import check_number


@MODELS.register_module()
class SimPOLoss(nn.Module):
    """SimPO on mean log-probabilities per answer token.

    The arguments are those of :func:`mergemix_mm.functional.simpo_loss`, which has the equations.

    Args:
        beta (float): Scale of the reward, > 0 and finite. Defaults to 2.0, as in SimPO.
        label_smoothing (float): In [0, 0.5). Defaults to 0.0.
        loss_type (str): ``'sigmoid'`` or ``'hinge'``. Defaults to ``'sigmoid'``.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, beta: float = 2.0, label_smoothing: float = 0.0, loss_type: str = 'sigmoid') -> None:
        super().__init__()
        check_number('SimPOLoss: beta', beta, '> 0 and finite', above=0)
        check_number('SimPOLoss: label_smoothing', label_smoothing, 'in [0, 0.5)', least=0, below=0.5)
        self.beta = beta
        self.label_smoothing = label_smoothing
        self.loss_type = loss_type
        self(torch.zeros(1), torch.zeros(1), margin=0.0)  # Refuses a bad loss_type before a model is loaded.

    def forward(self, chosen: Tensor, rejected: Tensor, margin: float | Tensor) -> Tensor:
        """Losses [B] float32 of pairs: `chosen` and `rejected` are [B], `margin` is a number or [B]."""
        return simpo_loss(chosen, rejected, self.beta, margin, self.label_smoothing, self.loss_type)
