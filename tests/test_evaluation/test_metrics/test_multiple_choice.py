"""Tests of MultipleChoiceMetric."""

import re
import string
import time
from pathlib import Path

import pytest
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmpretrain.structures import DataSample

from mergemix_mm.evaluation import MultipleChoiceMetric
from mergemix_mm.evaluation.metrics.multiple_choice import read_option

TABLE = Path(__file__).parents[3] / 'docs' / 'option_letters.md'
COLOURS = ['red', 'blue', 'green', 'a dog']
ANIMALS = ['a cat', 'a dog', 'an owl', 'a dog and an owl']


def published_forms():
    """The rows of the published tables: the answer, and the letter of its option, or None."""
    rows = re.findall(r'^\| (`+)(.+?)\1 \|(?: ([A-D]) \|)?$', TABLE.read_text(encoding='utf-8'), re.MULTILINE)
    return [(text.strip().replace('\\|', '|').replace('⏎', '\n'), letter or None) for _, text, letter in rows]


def test_every_published_form_is_read_as_published():
    forms = published_forms()
    assert sum(letter is not None for _, letter in forms) > 150 and sum(letter is None for _, letter in forms) > 80
    wrong = {}
    for text, letter in forms:
        index = read_option(text, COLOURS)
        if letter != (None if index is None else string.ascii_uppercase[index]):
            wrong[text] = index
    assert not wrong


@pytest.mark.parametrize(
    ('text', 'choices', 'letter'),
    [
        ('Both A and B', ['x', 'y', 'z', 'Both A and B'], 'D'),
        ('D. Both A and B', ['x', 'y', 'z', 'Both A and B'], 'D'),
        ('All of the above', ['a', 'b', 'all of the above'], 'C'),
        ('B', ['B', 'A'], 'B'),
        ('A. Lincoln', ['G. Washington', 'A. Lincoln'], 'B'),
        ('B. A. Lincoln', ['G. Washington', 'A. Lincoln'], 'B'),
        ('B. blue', ['A. red', 'B. blue'], 'B'),
        ('A) x', ['x', 'x'], 'A'),
        ('x', ['x', 'x'], None),
        ('The answer is 3.5.', ['3', '3.5', '35'], 'B'),
        ('-3', ['3', '-3'], 'B'),
        ('{"answer": 2}', ['1', '2', '3'], 'B'),
        ('{"answer": 2}', ['1', '3', '4'], None),
        # The minus sign of typeset formulas.
        ('\u22123', ['3', '-3'], 'B'),
        ('The answer is \u22123.', ['3', '\u22123'], 'B'),
        ('\u22123', ['3', '4'], None),
        ('x > y', ['x < y', 'x > y'], 'B'),
        ('*', ['+', '*'], 'B'),
        (r'\boxed{\frac{1}{3}}', [r'\frac{1}{2}', r'\frac{1}{3}'], 'B'),
        ('蓝色', ['红色', '蓝色'], 'B'),
        ('a dog', ['cat', 'dog'], 'B'),
        ('A dog', ['cat', 'dog'], None),
        ('A dog', ['a cat', 'a dog'], 'B'),
        ('I', list('123456789'), 'I'),
        ('I. 9', list('123456789'), 'I'),
        ('The answer is I.', list('123456789'), 'I'),
        ('I think', list('123456789'), None),
        ('The answer is B, I think', list('123456789'), 'B'),
        ('z', [f'option {i}' for i in range(26)], 'Z'),
        ('C', ['x', 'y'], None),
        ('The answer is (C).', ['x', 'y'], None),
        ('Cat', ['cat', 'the cat', 'dog'], None),
        ('Vitamin (C)', ['iron', 'vitamin (C)', 'zinc'], 'B'),
        ('vitamin C. It is healthy', ANIMALS, None),
        ('It barks, so (B) it is.', ANIMALS, 'B'),
        ('I would go for option D.', ANIMALS, 'D'),
        ('A dog is running', ANIMALS, None),
        ('it is a cat', ANIMALS, None),
        ('The answer is A dog', ANIMALS, None),
        ('The answer is a dog with an owl', ANIMALS, None),
    ],
)
def test_the_texts_and_the_number_of_the_choices_count(text, choices, letter):
    index = read_option(text, choices)
    assert (None if index is None else string.ascii_uppercase[index]) == letter


@pytest.mark.parametrize(
    'part', ['answer is ', r'\boxed{', '"answer": "', '<answer>', '(B) is the ', '_', 'A or ', 'not ', '</think>', '选']
)
def test_a_long_answer_takes_time_in_proportion(part):
    def seconds(count):
        start = time.process_time()
        read_option(part * count, COLOURS)
        return time.process_time() - start

    short, long = seconds(1000), seconds(8000)
    assert long < 24 * short + 0.5  # 8 times the text; in square proportion it would be 64 times.


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
    with pytest.raises(ValueError, match=r'gt_answer=.* A to D'):
        evaluate([('A', truth)])


@pytest.mark.parametrize('choices', ['red', [], [str(i) for i in range(27)]])
def test_choices_that_have_no_letters_are_refused(choices):
    with pytest.raises(ValueError, match=r'MultipleChoiceMetric: choices='):
        MultipleChoiceMetric().process(None, [dict(pred_answer='A', gt_answer='A', choices=choices)])
