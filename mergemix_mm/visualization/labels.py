"""The labels of a batch, as the captions of figures need them."""


def labels_of(data_batch, batch_size: int) -> list | None:
    """The labels of a batch as the figures take them.

    Args:
        data_batch: What the data loader gave; labels are read from its ``data_samples``, if it has any.
        batch_size (int): Number of images B that were mixed.

    Returns:
        list | None: B tensors of class indices (the positive classes of a multi-label sample), or None where the
        batch holds no labels or not as many as images.
    """
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    if samples is None or len(samples) != batch_size:
        return None
    labels = []
    for sample in samples:
        if 'gt_label' in sample:
            labels.append(sample.gt_label)
        elif 'gt_score' in sample:
            labels.append(sample.gt_score.nonzero().flatten())
        else:
            return None
    return labels
