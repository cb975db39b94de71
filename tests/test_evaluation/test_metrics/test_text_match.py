"""Tests of exact match, ANLS and relaxed accuracy."""

import pytest
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmpretrain.structures import DataSample

from mergemix_mm.evaluation import ANLSMetric, RelaxedAccuracy
from mergemix_mm.evaluation.metrics.text_match import edit_distance, read_number


def evaluate(metric, rows, **kwargs):
    evaluator = Evaluator(METRICS.build(dict(type=metric, **kwargs)))
    for answer, truth, *group in rows:
        fields = dict(pred_answer=answer, gt_answer=truth, **{'question_type': each for each in group})
        evaluator.process([DataSample(metainfo=fields)])
    return evaluator.evaluate(len(rows))


@pytest.mark.parametrize(
    ('one', 'other', 'distance'),
    [('kitten', 'sitting', 3), ('flaw', 'lawn', 2), ('', 'abc', 3), ('abc', 'abc', 0), ('ab', 'ba', 2)],
)
def test_edit_distances_of_the_textbook(one, other, distance):
    assert edit_distance(one, other) == edit_distance(other, one) == distance


@pytest.mark.parametrize(
    ('answer', 'truth', 'expected'),
    [
        ('Coca  cola ', 'coca cola', 1),
        ('coca cole', 'coca cola', 8 / 9),
        ('sitting', 'kitten', 4 / 7),
        ('ab', 'abcd', 0),  # d = 0.5 is not below the threshold, as in the paper.
        ('Pepsi', ['coca cola', 'pepsi'], 1),
        ('pepsi', 'coca cola', 0),
        ('', 'a', 0),
    ],
)
def test_an_answer_is_worth_its_similarity_from_one_half_on(answer, truth, expected):
    assert evaluate('ANLSMetric', [(answer, truth)]) == {'answer/anls': pytest.approx(100 * expected)}


def test_the_threshold_decides_what_is_worth_nothing():
    assert evaluate('ANLSMetric', [('ab', 'abcd')], threshold=0.6) == {'answer/anls': 50}
    assert evaluate('ANLSMetric', [('sitting', 'kitten')], threshold=0.4) == {'answer/anls': 0}


@pytest.mark.parametrize(
    ('text', 'number'),
    [
        ('12', 12),
        (' -3.5 ', -3.5),
        ('+.5', 0.5),
        ('1,250,000', 1250000),
        ('5%', 0.05),
        ('7.', 7),
        ('1,25', None),
        ('two', None),
        ('12 cats', None),
        ('nan', None),
        ('-', None),
        ('', None),
        ('%', None),
    ],
)
def test_numbers_are_read_and_nothing_else(text, number):
    assert read_number(text) == (pytest.approx(number) if number is not None else None)


@pytest.mark.parametrize(
    ('answer', 'truth', 'right'),
    [
        ('104', '100', True),
        ('105', '100', True),
        ('106', '100', False),
        ('95', '100', True),
        ('94.9', '100', False),
        ('-104', '-100', True),
        ('104', '-100', False),
        ('0.01', '0', False),
        ('0.0', '0', True),
        ('1,020', '1000', True),
        ('0.51', '50%', True),
        ('Red.', 'red', True),
        ('reds', 'red', False),
        ('104', 'about 100', False),
        ('104', ['50', '100'], True),
    ],
)
def test_numbers_may_be_off_by_five_percent_and_texts_not_at_all(answer, truth, right):
    assert evaluate('RelaxedAccuracy', [(answer, truth)]) == {'answer/relaxed_accuracy': 100 * right}


def test_the_tolerance_can_be_set():
    rows = [('106', '100'), ('100', '100')]
    assert evaluate('RelaxedAccuracy', rows, tolerance=0.1) == {'answer/relaxed_accuracy': 100}
    assert evaluate('RelaxedAccuracy', rows, tolerance=0) == {'answer/relaxed_accuracy': 50}


def test_groups_are_scored_apart():
    rows = [('104', '100', 'human'), ('1', '100', 'human'), ('a', 'a', 'augmented')]
    assert evaluate('RelaxedAccuracy', rows) == {
        'answer/relaxed_accuracy': pytest.approx(200 / 3),
        'answer/augmented/relaxed_accuracy': 100,
        'answer/human/relaxed_accuracy': 50,
    }


def test_bad_thresholds_are_refused():
    with pytest.raises(ValueError, match=r'threshold=0'):
        ANLSMetric(threshold=0)
    with pytest.raises(ValueError, match=r'tolerance=5'):
        RelaxedAccuracy(tolerance=5)


@pytest.mark.parametrize(
    ('answer', 'accepted', 'strict', 'official'),
    [
        ('102', '100', 1, 1),
        ('106', '100', 0, 0),
        ('12%', '0.12', 1, 1),
        ('45%', '45', 0, 0),
        ('1,250', '1250', 1, 0),
        ('1,250', '1,250', 1, 1),
        ('0.0', '0', 1, 0),
        ('0', '0', 1, 1),
        ('Yes', 'yes', 1, 1),
        ('The cat.', 'cat', 1, 0),
        ('-5 %', '-0.05', 1, 1),
        ('5 apples', '5', 0, 0),
    ],
)
def test_relaxed_accuracy_has_the_rule_of_published_numbers(answer, accepted, strict, official):
    for rule, right in (('strict', strict), ('official', official)):
        assert evaluate('RelaxedAccuracy', [(answer, accepted)], rule=rule) == {'answer/relaxed_accuracy': 100 * right}
    with pytest.raises(ValueError, match="rule='chartqa'"):
        RelaxedAccuracy(rule='chartqa')


def test_exact_matches_are_counted_over_all_questions_and_those_of_each_type():
    rows = [
        ('Red.', 'red', 'colour'),
        ('blue', 'green', 'colour'),
        ('3', ['three', '3'], 'count'),
        ('a cat', 'cat'),
    ]
    assert evaluate('AnswerAccuracy', rows) == {
        'answer/accuracy': 75,
        'answer/colour/accuracy': 50,
        'answer/count/accuracy': 100,
    }
    assert evaluate('AnswerAccuracy', [('yes', 'no')]) == {'answer/accuracy': 0}
