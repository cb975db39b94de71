"""Accuracy of referring expressions: does the box of an answer overlap the object of the expression?"""

from collections.abc import Sequence

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torchvision.ops import box_iou

from ...utils.numbers import check_number
from .answer_boxes import check_coordinates, read_boxes, true_boxes
from .answers import group_of, per_group, percent


@METRICS.register_module()
class ReferringBoxMetric(BaseMetric):
    """Share of answers whose box overlaps the right one, as RefCOCO, RefCOCO+ and RefCOCOg are scored. In percent.

    - ``box/accuracy``: share of boxes with an intersection over union (IoU) of at least ``iou_threshold``;
    - ``box/mean_iou``: mean IoU, where a malformed answer has 0;
    - ``box/malformed``: share of answers that do not name exactly one box: none, several, a key point, brackets that do
      not close, corners in the wrong order, numbers outside the range of ``coordinates``. These answers are wrong;
    - ``box/<group>/...``: the same over the samples of each ``split``, ``category`` or ``question_type`` (whichever a
      sample has first in this order).

    Args:
        iou_threshold (float): The smallest IoU of a right box, in (0, 1]. Defaults to 0.5.
        coordinates (str): What the numbers of an answer mean: ``'square'`` (SPHINX), ``'unit'``, ``'percent'``,
            ``'permille'``, ``'loc'`` or ``'pixels'``, see :func:`~.answer_boxes.read_boxes`. Defaults to ``'square'``.
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``box``.

    Raises:
        KeyError: If a sample has no ``pred_answer``, ``gt_boxes`` or ``image_size``.
        ValueError: If ``iou_threshold`` or ``coordinates`` is outside its range, a sample has no or several
            boxes, or there is no sample.
    """

    default_prefix = 'box'

    def __init__(
        self,
        iou_threshold: float = 0.5,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        coordinates: str = 'square',
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        allowed = 'in (0, 1]; 0.5 is usual.'
        check_number('ReferringBoxMetric: iou_threshold', iou_threshold, allowed, above=0, most=1)
        check_coordinates(coordinates, 'ReferringBoxMetric')
        self.iou_threshold, self.coordinates = iou_threshold, coordinates

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Compare the boxes of a batch.

        Args:
            data_batch: Unused.
            data_samples (Sequence[dict]): Data samples as dictionaries, with ``pred_answer`` (str), ``gt_boxes`` (one
                box, xyxy in pixels), ``image_size`` (height and width in pixels) and perhaps ``align`` (see
                :func:`~.answer_boxes.read_boxes`) and a group.
        """
        for sample in data_samples:
            truth = true_boxes(sample, 'ReferringBoxMetric')
            if truth.shape != (1, 4):
                raise ValueError(
                    f'ReferringBoxMetric: gt_boxes={truth.tolist()} must be exactly one box [[x1, y1, x2, y2]]; for '
                    "several objects use dict(type='TextDetectionMetric')."
                )
            boxes = read_boxes(sample, 'ReferringBoxMetric', self.coordinates)
            malformed = boxes is None or len(boxes) != 1
            iou = 0.0 if malformed else float(box_iou(boxes, truth))
            self.results.append(dict(iou=iou, malformed=malformed, group=group_of(sample)))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the values over the samples of all processes.

        Args:
            results (list[dict]): ``iou``, ``malformed`` and ``group`` of every sample.

        Returns:
            dict[str, float]: The values over all samples and per group, in percent.
        """
        if not results:
            raise ValueError('ReferringBoxMetric: there is no answer to evaluate; is the dataset of the loader empty?')
        return per_group(results, 'group', self._score)

    def _score(self, rows: Sequence[dict]) -> dict[str, float]:
        return {
            'accuracy': percent([row['iou'] >= self.iou_threshold for row in rows]),
            'mean_iou': 100 * sum(row['iou'] for row in rows) / len(rows),
            'malformed': percent([row['malformed'] for row in rows]),
        }
