"""Tests of AnswerAccuracy."""

import pytest
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmpretrain.structures import DataSample

from mergemix_mm.evaluation import AnswerAccuracy


def evaluate(samples):
    evaluator = Evaluator(METRICS.build(dict(type='AnswerAccuracy')))
    for start in range(0, len(samples), 2):
        evaluator.process([DataSample(metainfo=dict(sample)) for sample in samples[start : start + 2]])
    return evaluator.evaluate(len(samples))


def test_counts_all_questions_and_those_of_each_type():
    samples = [
        dict(pred_answer='Red.', gt_answer='red', question_type='colour'),
        dict(pred_answer='blue', gt_answer='green', question_type='colour'),
        dict(pred_answer='3', gt_answer=['three', '3'], question_type='count'),
        dict(pred_answer='a cat', gt_answer='cat'),
    ]
    assert evaluate(samples) == {
        'answer/accuracy': 75,
        'answer/colour/accuracy': 50,
        'answer/count/accuracy': 100,
    }


def test_without_types_there_is_one_number():
    assert evaluate([dict(pred_answer='yes', gt_answer='no')]) == {'answer/accuracy': 0}


@pytest.mark.parametrize(
    ('sample', 'hint'),
    [(dict(gt_answer='a'), r'pred_answer.*predict\(\)'), (dict(pred_answer='a'), 'gt_answer.*dataset')],
)
def test_a_missing_field_is_named_with_where_it_comes_from(sample, hint):
    with pytest.raises(KeyError, match=f'AnswerAccuracy: a data sample has no .{hint}'):
        AnswerAccuracy().process(None, [sample])


def test_no_sample_at_all_is_refused():
    with pytest.raises(ValueError, match='AnswerAccuracy: there is no answer'):
        AnswerAccuracy().evaluate(0)
