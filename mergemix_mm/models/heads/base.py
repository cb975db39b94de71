"""What a tuner asks of a head, and what it hands to one."""

from dataclasses import dataclass

from mmengine.model import BaseModule
from torch import Tensor


@dataclass
class AnswerScores:
    """Log-probabilities of the answers. Shapes: B samples.

    Args:
        sums (Tensor): [B] float32, summed over the answer tokens of each sample.
        lengths (Tensor): [B] int64, numbers of answer tokens.
        batch (dict, optional): The prepared batch that was scored, for a head that scores it with another model as
            well, such as the reference of DPO. Defaults to None.
    """

    sums: Tensor
    lengths: Tensor
    batch: dict | None = None

    @property
    def means(self) -> Tensor:
        """[B], per answer token; 0 for a sample without any."""
        return self.sums / self.lengths.clamp(min=1)


class AnswerHead(BaseModule):
    """Turns the log-probabilities of answers into losses. This is all that a tuner asks of its head.

    A new objective is one subclass that implements :meth:`loss`, registered with ``MODELS``. A head that compares each
    answer with a loser sets :attr:`needs_loser`; `VLMTuner` then makes or finds the losers.

    Args:
        init_cfg (dict, optional): Initialization config. Defaults to None.
    """

    # Whether the head compares each answer with a loser.
    needs_loser: bool = False

    @property
    def needs_ratio(self) -> bool:
        """Whether the head needs the ratios of mixed images, so that losers must come from a mixer."""
        return False

    @property
    def loser_needs_grad(self) -> bool:
        """Whether the pass over the losers has to be differentiable."""
        return True

    def loss(
        self,
        chosen: AnswerScores,
        rejected: AnswerScores | None = None,
        ratio: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Calculate the losses, and what is logged.

        A tuner passes only `chosen` to a head without losers, and to any head where no sample of any rank has a loser.

        Args:
            chosen (AnswerScores): Of the answers to be learnt, given the clean images.
            rejected (AnswerScores, optional): Of the losers. Defaults to None.
            ratio (Tensor, optional): [B], the share of its images that is a sample's own, in [0, 1]. Defaults to None:
                the losers are rejected answers of the records.
            valid (Tensor, optional): [B] bool, which samples have a loser. Always given with `rejected`.

        Returns:
            dict[str, Tensor]: values whose names contain ``loss`` are summed and trained on; the others are logged.
            AIA reads the next-token loss from ``loss_sft``.
        """
        raise NotImplementedError
