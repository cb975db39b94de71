"""What batched generation needs: prompts padded on the left, and the log-probabilities of generated tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...families.base import token_padding


def pad_left(batch: dict) -> dict:
    """The same batch with the padding of every sample in front of its tokens."""
    if batch.get('attention_mask') is None:
        return dict(batch)
    # A stable sort keeps the order of the tokens.
    order = batch['attention_mask'].argsort(dim=1, stable=True)
    return {**batch, **{key: batch[key].gather(1, order) for key in token_padding() if batch.get(key) is not None}}


class AnswerLogps:
    """A logits processor that changes nothing and sums up the log-probabilities of the generated tokens.

    It keeps the log-probabilities of one step, [B, V]. The library's scores would keep those of every step.

    Args:
        end_ids (Sequence[int]): Tokens that end an answer. They are part of the sum.
    """

    def __init__(self, end_ids: Sequence[int]) -> None:
        self.end_ids = list(end_ids)
        self._logps: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Called by the library before each choice: `input_ids` [B, L] end with the previous choice."""
        if self._logps is None:
            self._sums = scores.new_zeros(len(scores), dtype=torch.float32)
            self._running = torch.ones_like(self._sums, dtype=torch.bool)
        else:
            self._add(input_ids[:, -1])
        self._logps = scores.float().log_softmax(dim=-1)
        return scores

    def sums(self, last: Tensor) -> Tensor:
        """Sums [B] float32, once the last choices [B] are known."""
        self._add(last)
        return self._sums

    def _add(self, chosen: Tensor) -> None:
        assert self._logps is not None  # The library chooses from scores.
        logps = self._logps.gather(1, chosen[:, None]).squeeze(1)
        self._sums = self._sums + torch.where(self._running, logps, 0.0)
        self._running = self._running & ~torch.isin(chosen, chosen.new_tensor(self.end_ids))
