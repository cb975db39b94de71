"""Labels of a batch, whatever its samples hold."""

import torch
from mmpretrain.structures import DataSample

from mergemix_mm.visualization import labels_of


def test_labels_come_from_classes_or_scores_or_not_at_all():
    multi = DataSample().set_gt_score(torch.tensor([0.0, 1.0, 1.0]))
    batch = dict(data_samples=[DataSample().set_gt_label(2), multi])
    assert [label.tolist() for label in labels_of(batch, 2)] == [[2], [1, 2]]
    assert labels_of(batch, 3) is None
    assert labels_of(dict(data_samples=[DataSample()]), 1) is None
    assert labels_of(dict(inputs=1), 1) is None
    assert labels_of(None, 1) is None
