"""Tests of TextDetectionMetric."""

import sys

import pytest
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, METRICS
from mmpretrain.structures import DataSample

from mergemix_mm.functional import boxes_to_square, format_boxes

SIZE = (100, 200)


def sample(label, image, truth, found, **fields):
    """An answer that names boxes in pixels, or is a text."""
    if not isinstance(found, str):
        found = format_boxes(boxes_to_square(box, SIZE) for box in found)
    return dict(pred_answer=found, label=label, image_id=image, gt_boxes=truth, image_size=SIZE, **fields)


def evaluate(samples):
    evaluator = Evaluator(METRICS.build(dict(type='TextDetectionMetric')))
    evaluator.process([DataSample(metainfo=one) for one in samples])
    return {name.removeprefix('detection/'): value for name, value in evaluator.evaluate(len(samples)).items()}


CATS, DOGS = [[10, 10, 50, 50], [100, 20, 180, 80]], [[20, 0, 60, 100]]


def test_a_perfect_predictor_gets_everything_and_nothing_is_printed(capsys):
    values = evaluate(
        [sample('cat', 1, CATS, CATS), sample('dog', 1, DOGS, DOGS), sample('cat', 2, DOGS, DOGS)],
    )
    assert values == {name: pytest.approx(100) for name in ('mAP', 'mAP_50', 'mAP_75')} | {'malformed': 0}
    assert capsys.readouterr().out == ''


def test_a_shifted_box_falls_from_threshold_to_threshold():
    # 40 wide, shifted by 9: IoU 31 / 49 = 0.63, right at 0.5, 0.55 and 0.6, so at 3 of 10 thresholds.
    values = evaluate([sample('cat', 1, [[100, 20, 140, 60]], [[109, 20, 149, 60]])])
    assert values['mAP_50'] == pytest.approx(100) and values['mAP_75'] == 0
    assert values['mAP'] == pytest.approx(30)


def test_a_class_that_is_missed_counts_as_much_as_one_that_is_found():
    values = evaluate([sample('cat', 1, CATS, CATS), sample('dog', 1, DOGS, [[100, 0, 140, 100]])])
    assert values == {name: pytest.approx(50) for name in ('mAP', 'mAP_50', 'mAP_75')} | {'malformed': 0}


def test_half_of_the_objects_is_half_of_the_recall():
    # Precision 1 up to recall 0.5: 51 of the 101 points of the curve.
    assert evaluate([sample('cat', 1, CATS, CATS[:1])])['mAP'] == pytest.approx(100 * 51 / 101)


@pytest.mark.parametrize(('wrong', 'expected'), [(0.2, 1.0), (0.9, 0.5)])
def test_the_confidence_of_an_answer_orders_its_boxes(wrong, expected):
    # A wrong box in another image spoils the precision only if it is more confident than the right one.
    elsewhere = [[150, 0, 190, 20]]
    samples = [
        sample('cat', 1, DOGS, DOGS, pred_confidence=0.5),
        sample('cat', 2, [], elsewhere, pred_confidence=wrong),
    ]
    assert evaluate(samples)['mAP_50'] == pytest.approx(100 * expected)


def test_malformed_answers_predict_nothing_and_are_counted():
    samples = [
        sample('cat', 1, DOGS, DOGS),
        sample('cat', 2, DOGS, 'I see none'),
        sample('cat', 3, DOGS, '[0.1,0.2,0.3'),
        sample('cat', 4, DOGS, '[0.1,0.2]'),
    ]
    values = evaluate(samples)
    assert values['malformed'] == 75
    assert values['mAP'] == pytest.approx(100 * 26 / 101)  # Recall 1/4: the points 0, 0.01, ..., 0.25.
    assert evaluate(samples[1:]) == dict(mAP=0, mAP_50=0, mAP_75=0, malformed=100)


def test_the_answers_that_the_task_writes_are_perfect():
    pipeline = [dict(type='DetectionTask')]
    dataset = DATASETS.build(dict(type='ShapesTaskDataset', task='detection', length=20, pipeline=pipeline))
    keys = ('label', 'source', 'gt_boxes', 'image_size', 'align')
    records = [dataset[i] for i in range(20)]
    values = evaluate([{key: one[key] for key in keys} | dict(pred_answer=one['gt_answer']) for one in records])
    assert values['mAP'] == pytest.approx(100) and values['malformed'] == 0


def test_without_an_image_id_the_source_names_the_image():
    samples = [dict(sample('cat', 0, DOGS, DOGS), source=f'a.json:{i}') for i in range(2)]
    for one in samples:
        del one['image_id']
    assert evaluate(samples)['mAP'] == pytest.approx(100)


def test_a_repeated_question_nothing_to_find_and_a_true_box_without_a_width_are_refused():
    with pytest.raises(ValueError, match="2 samples ask for 'cat' of image 7"):
        evaluate([sample('cat', 7, DOGS, DOGS)] * 2)
    with pytest.raises(ValueError, match='no sample has a box'):
        evaluate([sample('cat', 1, [], DOGS)])
    with pytest.raises(ValueError, match=r'TextDetectionMetric: 7: gt_boxes='):
        evaluate([sample('cat', 7, [[1, 1, 1, 5]], DOGS)])


def test_without_pycocotools_the_error_says_what_to_install(monkeypatch):
    for name in ('pycocotools.coco', 'pycocotools.cocoeval'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match='pip install pycocotools'):
        evaluate([sample('cat', 1, DOGS, DOGS)])
