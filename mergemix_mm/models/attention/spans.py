"""Between which tokens interaction is measured: the queries and the keys of a task (https://arxiv.org/abs/2511.22663)."""

from torch import Tensor

from ..vlms.base import IMAGE, TEXT


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
        queries, keys = labels != -100, modality == IMAGE
    elif task == 'gen':
        queries, keys = modality == IMAGE, modality == TEXT
    else:
        raise ValueError(f"interaction_spans: task={task!r} must be 'gen' or 'und'")
    return queries if dropped is None else queries & ~dropped[:, None], keys
