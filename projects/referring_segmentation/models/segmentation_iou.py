"""The metrics of referring segmentation on RefCOCO: cumulative and mean IoU of masks."""

from collections.abc import Callable, Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS, MODELS

from mergemix_mm.evaluation.metrics.answers import get_field, group_of, per_group, percent

from .grounder import read_box


@METRICS.register_module()
class SegmentationIoU(BaseMetric):
    """Segments the box of every answer and compares the masks, in percent.

    - ``mask/ciou``: the sum of all intersections over the sum of all unions (cIoU, also called oIoU), in which large
      objects weigh more;
    - ``mask/miou``: the mean of the samples' IoUs (mIoU, also called gIoU);
    - ``mask/malformed``: the share of answers that do not name exactly one box. Their masks count as empty;
    - ``mask/<group>/...``: the same over the samples of each ``split`` (as ``ReferringBoxMetric`` groups).

    Args:
        segmenter (Callable | dict): From an image and a box [4] to a mask, or its config:
            ``dict(type='SamSegmenter', pretrained=...)`` or ``dict(type='GrabCutSegmenter')``.
        collect_device (str): How several processes gather, ``'cpu'`` or ``'gpu'``. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which is ``mask``.

    Raises:
        KeyError: If a sample has no ``pred_answer``, ``image``, ``image_size`` or ``gt_mask``.
        ValueError: If a true mask is empty, or there is no sample.
    """

    default_prefix = 'mask'

    def __init__(self, segmenter: Callable | dict, collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.segmenter = MODELS.build(segmenter) if isinstance(segmenter, dict) else segmenter

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Segment and compare a batch.

        Args:
            data_batch: Unused.
            data_samples (Sequence[dict]): Data samples of ``ReferringSegmentationTask`` as dictionaries, with
                ``pred_answer``.
        """
        for sample in data_samples:
            image, truth = (get_field(sample, key, 'SegmentationIoU') for key in ('image', 'gt_mask'))
            if not truth.any():
                raise ValueError(f'SegmentationIoU: the true mask of {sample.get("source", "a sample")} is empty.')
            box = read_box(sample, 'SegmentationIoU')
            mask = np.zeros_like(truth) if box is None else self.segmenter(image, box)
            intersection, union = int((mask & truth).sum()), int((mask | truth).sum())
            self.results.append(
                dict(intersection=intersection, union=union, malformed=box is None, group=group_of(sample))
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the values over the samples of all processes.

        Args:
            results (list[dict]): ``intersection`` and ``union`` in pixels, ``malformed`` and ``group`` of every sample.

        Returns:
            dict[str, float]: The values over all samples and per group, in percent.
        """
        if not results:
            raise ValueError('SegmentationIoU: there is no answer to evaluate; is the dataset of the loader empty?')
        return per_group(results, 'group', _score)


def _score(rows: Sequence[dict]) -> dict[str, float]:
    intersection, union = (np.array([row[key] for row in rows], dtype=float) for key in ('intersection', 'union'))
    return dict(
        ciou=float(100 * intersection.sum() / union.sum()),
        miou=float(100 * (intersection / union).mean()),
        malformed=percent([row['malformed'] for row in rows]),
    )
