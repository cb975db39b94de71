"""Tests of MultipleChoiceMetric."""

import pytest
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmpretrain.structures import DataSample

from mergemix_mm.evaluation import MultipleChoiceMetric
from mergemix_mm.evaluation.metrics.multiple_choice import read_option

ANIMALS = ['a cat', 'a dog', 'an owl', 'a dog and an owl']


@pytest.mark.parametrize(
    ('text', 'letter'),
    [
        ('B', 'B'),
        (' b. ', 'B'),
        ('(C)', 'C'),
        ('**D**', 'D'),
        ('B. a cat', 'B'),
        ('A) because it meows', 'A'),
        ('B, as it barks', 'B'),
        ('C\nIt hoots.', 'C'),
        ('The answer is B', 'B'),
        ('The correct answer is (A).', 'A'),
        ('Answer: C because it hoots.', 'C'),
        ('I would go for option D.', 'D'),
        ('It barks, so (B) it is.', 'B'),
        ('Dog.', 'B'),
        ('an owl', 'C'),
    ],
)
def test_the_option_is_read_from_free_text(text, letter):
    assert read_option(text, ANIMALS) == 'ABCD'.index(letter)


@pytest.mark.parametrize(
    'text',
    [
        '',
        'E',
        'The answer is E.',
        'A dog is running',
        'A or B',
        'A, B',
        'The answer is B or C.',
        'Either (A) or (C)',
        '(A) or C',
        'A. a cat B. a dog C. an owl',
        'The answer is a dog with an owl',
        'The answer is A dog',
        'I think so',
        'it is a cat',
        'vitamin C. It is healthy',
    ],
)
def test_what_chooses_no_option_or_several_is_unreadable(text):
    assert read_option(text, ANIMALS) is None


def test_texts_that_several_choices_share_choose_none_and_brackets_in_a_choice_do_not_choose():
    assert read_option('Cat', ['cat', 'the cat', 'dog']) is None
    assert read_option('Vitamin (C)', ['iron', 'vitamin (C)', 'zinc']) == 1


def evaluate(rows, choices=ANIMALS):
    evaluator = Evaluator(METRICS.build(dict(type='MultipleChoiceMetric')))
    for answer, truth in rows:
        evaluator.process([DataSample(metainfo=dict(pred_answer=answer, gt_answer=truth, choices=choices))])
    return evaluator.evaluate(len(rows))


def test_an_unreadable_answer_is_wrong_and_counted():
    rows = [
        ('B', 'B'),
        ('a dog', 'B'),
        ('C.', 'an owl'),
        ('A', 'B'),
        ('no idea', 'A'),
        ('', 'A'),
        ('E', 'A'),
        ('D', 'D'),
    ]
    assert evaluate(rows) == {'choice/accuracy': 50, 'choice/unreadable': 37.5}


@pytest.mark.parametrize('truth', ['E', 'a cow', 2, ['A', 'B']])
def test_a_truth_that_is_no_option_is_refused(truth):
    with pytest.raises(ValueError, match=r'gt_answer=.* must be a letter from A to D, or the text'):
        evaluate([('A', truth)])


def test_missing_choices_and_no_sample_are_refused():
    with pytest.raises(KeyError, match="MultipleChoiceMetric: a data sample has no 'choices'"):
        MultipleChoiceMetric().process(None, [dict(pred_answer='A', gt_answer='A')])
    with pytest.raises(ValueError, match='MultipleChoiceMetric: there is no answer'):
        MultipleChoiceMetric().evaluate(0)
