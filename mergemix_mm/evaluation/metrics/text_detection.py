"""Detection by text, scored like a detector: COCO's mean average precision of the boxes in answers."""

import contextlib
import io
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from .answer_boxes import check_coordinates, read_boxes, true_boxes
from .answers import get_field, percent

_NAMES = ('mAP', 'mAP_50', 'mAP_75')


@METRICS.register_module()
class TextDetectionMetric(BaseMetric):
    """Average precision of the boxes that answers name, by pycocotools' ``COCOeval`` (``bbox``). In percent.

    Each sample asks for all objects of one class in one image. The score of all boxes of an answer is its
    ``pred_confidence``, the model's probability of the whole text, or 1 if it has none.

    - ``detection/mAP``: mean over the classes and the IoU thresholds 0.5, 0.55, ..., 0.95;
    - ``detection/mAP_50``, ``detection/mAP_75``: at one threshold;
    - ``detection/malformed``: share of answers without a readable list of boxes. They predict nothing.

    The classes are those that the samples ask for. A question reveals that its class is in the image. Therefore the
    values are comparable with those of other models on the same questions, but not with those of a detector that
    searches all images for all classes.

    Args:
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``detection``.
        coordinates (str): What the numbers of an answer mean, as for ``ReferringBoxMetric``. Defaults to ``'square'``.

    Raises:
        ImportError: If pycocotools is not installed.
        KeyError: If a sample lacks a field of :meth:`process`.
        ValueError: If ``coordinates`` is unknown, two samples ask for the same class of the same image, or no sample
            has a box to be found.
    """

    default_prefix = 'detection'

    def __init__(self, collect_device: str = 'cpu', prefix: str | None = None, coordinates: str = 'square') -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        check_coordinates(coordinates, 'TextDetectionMetric')
        self.coordinates = coordinates

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Read the boxes of a batch.

        Args:
            data_batch: Unused.
            data_samples (Sequence[dict]): Data samples as dictionaries, with ``pred_answer`` (str), ``label`` (str, the
                class), ``gt_boxes`` (list of boxes, xyxy in pixels), ``image_size`` (height and width in pixels),
                ``image_id`` or ``source``, and perhaps ``pred_confidence`` (float in [0, 1]) and ``align`` (see
                :func:`~.answer_boxes.read_boxes`).
        """
        for sample in data_samples:
            label, truth = get_field(sample, 'label', 'TextDetectionMetric'), true_boxes(sample, 'TextDetectionMetric')
            image = get_field(sample, 'image_id' if 'image_id' in sample else 'source', 'TextDetectionMetric')
            boxes = read_boxes(sample, 'TextDetectionMetric', self.coordinates)
            row = dict(image=image, label=label, malformed=boxes is None, score=sample.get('pred_confidence', 1.0))
            row['truth'] = _to_xywh(truth)
            row['found'] = [] if boxes is None else _to_xywh(boxes)
            self.results.append(row)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the values over the samples of all processes.

        Args:
            results (list[dict]): ``image``, ``label``, ``truth``, ``found``, ``score`` and ``malformed`` of every
                sample.

        Returns:
            dict[str, float]: ``mAP``, ``mAP_50``, ``mAP_75`` and ``malformed``, in percent.
        """
        if not any(row['truth'] for row in results):
            raise ValueError(
                'TextDetectionMetric: no sample has a box to be found; is the dataset of the loader empty?'
            )
        asked = Counter((row['image'], row['label']) for row in results)
        (image, label), times = asked.most_common(1)[0]
        if times > 1:
            raise ValueError(
                f'TextDetectionMetric: {times} samples ask for {label!r} of image {image!r}; each class of an image is '
                'asked for once.'
            )
        values = _average_precision(results)
        return dict(zip(_NAMES, values)) | {'malformed': percent([row['malformed'] for row in results])}


def _to_xywh(boxes) -> list[list[float]]:
    boxes = torch.as_tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()


def _average_precision(rows: Sequence[dict]) -> list[float]:
    """AP over all thresholds, at 0.5 and at 0.75, in percent."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError('TextDetectionMetric: needs pycocotools; run `pip install pycocotools`.') from error

    # COCOeval knows images and classes by numbers from 1.
    images, labels = ({name: i for i, name in enumerate(dict.fromkeys(row[key] for row in rows), 1)} for key in _KEYS)
    truth, found = [], []
    for row in rows:
        place = dict(image_id=images[row['image']], category_id=labels[row['label']])
        # COCOeval asks for area and crowd of every object.
        truth += [dict(place, bbox=box, area=box[2] * box[3], iscrowd=0) for box in row['truth']]
        found += [dict(place, bbox=box, score=row['score']) for box in row['found']]
    if not found:  # pycocotools fails on an empty list.
        return [0.0] * len(_NAMES)
    coco = COCO()
    coco.dataset = dict(
        info={},
        images=[dict(id=i) for i in images.values()],
        categories=[dict(id=i, name=name) for name, i in labels.items()],
        annotations=[dict(one, id=i) for i, one in enumerate(truth, 1)],
    )
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints every step.
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return (100 * np.asarray(evaluation.stats[: len(_NAMES)])).tolist()


_KEYS = ('image', 'label')
