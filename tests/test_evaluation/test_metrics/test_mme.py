"""Tests of MMEMetric."""

import pytest
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmpretrain.structures import DataSample

from mergemix_mm.evaluation.metrics.mme import SUB_TASKS, read_first_letters


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        ('Yes', 'yes'),
        (' no.', 'no'),
        ('NO, there is none', 'no'),
        ('"Yes"', 'yes'),
        ('There is no dog', None),
        ('A cat', None),
        ('', None),
    ],
)
def test_an_answer_is_read_by_its_first_letters(text, found):
    assert read_first_letters(text) == found


def pair(task, image, *answers, key='image_id'):
    """The two questions of an image: yes is the answer to the first, no to the second."""
    return [
        {'category': task, key: image, 'gt_answer': truth, 'pred_answer': answer}
        for truth, answer in zip(('Yes', 'No'), answers)
    ]


def evaluate(samples):
    evaluator = Evaluator(METRICS.build(dict(type='MMEMetric')))
    evaluator.process([DataSample(metainfo=one) for one in samples])
    return {name.removeprefix('mme/'): value for name, value in evaluator.evaluate(len(samples)).items()}


def test_equals_the_numbers_worked_out_by_hand():
    samples = [
        *pair('count', 'a.jpg', 'Yes', 'No'),
        *pair('count', 'b.jpg', 'yes', 'yes'),
        *pair('count', 'c.jpg', 'perhaps', 'No'),
        *pair('OCR', 'a.jpg', 'Yes', 'no'),
    ]
    third = 100 / 3
    assert evaluate(samples[::-1]) == {
        'count': pytest.approx(2 * third + third),
        'count/accuracy': pytest.approx(2 * third),
        'count/accuracy_plus': pytest.approx(third),
        'OCR': 200,
        'OCR/accuracy': 100,
        'OCR/accuracy_plus': 100,
        'unreadable': pytest.approx(100 / 8),
    }


def test_sums_are_those_of_the_paper_once_every_sub_task_is_there():
    perfect = [one for task in SUB_TASKS['perception'] for one in pair(task, 1, 'Yes', 'No')]
    yes = [one for task in SUB_TASKS['cognition'] for one in pair(task, 1, 'Yes', 'Yes')]
    values = evaluate(perfect + yes)
    assert values['perception'] == 2000 and values['cognition'] == 4 * 50
    values = evaluate(perfect[2:] + yes)
    assert 'perception' not in values and values['cognition'] == 200


def test_without_an_image_id_its_path_makes_the_pairs():
    samples = [
        *pair('count', ['a.jpg'], 'Yes', 'Yes', key='img_path'),
        *pair('count', ['b.jpg'], 'Yes', 'No', key='img_path'),
    ]
    assert evaluate(samples)['count'] == 75 + 50


def test_a_truth_that_is_neither_and_a_single_question_are_refused():
    with pytest.raises(ValueError, match="gt_answer='maybe'"):
        evaluate([dict(category='count', image_id=1, gt_answer='maybe', pred_answer='yes')])
    with pytest.raises(ValueError, match='image 7 of count has 1 '):
        evaluate(pair('count', 7, 'Yes'))
