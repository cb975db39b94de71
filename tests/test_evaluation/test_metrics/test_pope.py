"""Tests of POPEMetric."""

import pytest
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmpretrain.structures import DataSample

from mergemix_mm.evaluation import POPEMetric
from mergemix_mm.evaluation.metrics.pope import read_yes_no, read_yes_no_officially


@pytest.mark.parametrize(
    ('text', 'strict', 'official'),
    [
        ('Yes', 'yes', 'yes'),
        ('no', 'no', 'no'),
        ('NO.', 'no', 'yes'),
        ('No, there is no dog.', 'no', 'no'),
        (' Yes, there is. No cat, though.', 'yes', 'yes'),
        ('There is no dog in the image.', 'no', 'no'),
        ('The answer is yes', 'yes', 'yes'),
        ('There is a dog.', None, 'yes'),
        ('The image shows a cat. No dog is there.', None, 'yes'),
        ('I am not sure', None, 'no'),
        ('Nothing yesterday', None, 'yes'),
        ('', None, 'yes'),
    ],
)
def test_an_answer_is_read_by_the_rule(text, strict, official):
    assert read_yes_no(text) == strict
    assert read_yes_no_officially(text) == official


def evaluate(rows, **kwargs):
    evaluator = Evaluator(METRICS.build(dict(type='POPEMetric', **kwargs)))
    for answer, truth, *category in rows:
        fields = dict(pred_answer=answer, gt_answer=truth, **{'category': each for each in category})
        evaluator.process([DataSample(metainfo=fields)])
    return evaluator.evaluate(len(rows))


def test_equals_the_numbers_worked_out_by_hand():
    # Right: two yes, two no. Wrong: a yes that should be no, a no that should be yes, and two that say neither.
    rows = [('Yes', 'yes'), ('yes', 'Yes'), ('No', 'no'), ('no', 'no'), ('yes', 'no'), ('no', 'yes')]
    assert evaluate([*rows, ('maybe', 'yes'), ('maybe', 'no')]) == {
        'pope/accuracy': pytest.approx(100 * 4 / 8),
        'pope/precision': pytest.approx(100 * 2 / 3),
        'pope/recall': pytest.approx(100 * 2 / 4),
        'pope/f1': pytest.approx(100 * 4 / 7),
        'pope/yes_rate': pytest.approx(100 * 3 / 8),
        'pope/unreadable': pytest.approx(100 * 2 / 8),
    }


def test_a_model_that_says_nothing_gets_nothing_but_by_the_official_rule():
    rows = [('', 'yes'), ('', 'no')]
    silent, official = evaluate(rows), evaluate(rows, rule='official')
    assert [silent[f'pope/{name}'] for name in ('accuracy', 'f1', 'yes_rate', 'unreadable')] == [0, 0, 0, 100]
    assert [official[f'pope/{name}'] for name in ('accuracy', 'recall', 'yes_rate', 'unreadable')] == [50, 100, 100, 0]


def test_categories_are_scored_apart_and_their_mean_weighs_them_alike():
    values = evaluate(
        [('yes', 'yes', 'random'), ('yes', 'yes', 'random'), ('no', 'no', 'random'), ('yes', 'no', 'popular')]
    )
    assert values['pope/accuracy'] == 75
    assert values['pope/random/accuracy'] == values['pope/random/f1'] == 100
    assert values['pope/popular/accuracy'] == values['pope/popular/precision'] == values['pope/popular/f1'] == 0
    assert values['pope/mean/accuracy'] == values['pope/mean/f1'] == 50
    assert values['pope/mean/yes_rate'] == pytest.approx((100 * 2 / 3 + 100) / 2)
    assert not any('mean' in name for name in evaluate([('yes', 'yes')]))


@pytest.mark.parametrize('truth', ['maybe', ['yes', 'no'], 1])
def test_a_truth_that_is_neither_is_refused(truth):
    with pytest.raises(ValueError, match=r'gt_answer='):
        evaluate([('yes', truth)])


def test_a_bad_rule_is_refused():
    with pytest.raises(ValueError, match=r"rule='lenient'.*'strict'"):
        POPEMetric(rule='lenient')
