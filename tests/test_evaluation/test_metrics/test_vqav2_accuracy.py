"""Tests of VQAv2Accuracy."""

import random

import pytest
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmpretrain.evaluation import VQAAcc
from mmpretrain.structures import DataSample

from mergemix_mm.evaluation.metrics.vqav2_accuracy import _CONTRACTIONS, normalise_vqa_answer, vqa_accuracy


def evaluate(*rows):
    evaluator = Evaluator(METRICS.build(dict(type='VQAv2Accuracy')))
    for row in rows:
        evaluator.process([DataSample(metainfo=row)])
    return evaluator.evaluate(len(rows))


def leave_one_out(matches, people):
    """The rule as it is written down, subset by subset."""
    given = [True] * matches + [False] * (people - matches)
    return sum(min(sum(given[:i] + given[i + 1 :]) / 3, 1) for i in range(people)) / people


@pytest.mark.parametrize(
    ('matches', 'value'), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (5, 100), (9, 100), (10, 100)]
)
def test_an_answer_is_worth_the_mean_over_the_subsets_that_leave_one_person_out(matches, value):
    people = ['red'] * matches + [f'other {i}' for i in range(10 - matches)]
    assert evaluate(dict(pred_answer='red', gt_answer=people)) == {'vqa/official_accuracy': pytest.approx(value)}


def test_other_numbers_of_people_are_scored_by_the_same_mean():
    for people in range(2, 15):
        for matches in range(people + 1):
            assert vqa_accuracy(matches, people) == pytest.approx(leave_one_out(matches, people)), (matches, people)
    assert vqa_accuracy(3, 3) == pytest.approx(2 / 3) and vqa_accuracy(4, 4) == 1


def test_answers_are_scored_by_type_and_the_name_of_the_value_says_its_rule():
    rows = [
        dict(pred_answer='Yes', gt_answer=['yes'] * 10, answer_type='yes/no'),
        dict(pred_answer='no', gt_answer=['yes'] * 10, answer_type='yes/no'),
        dict(pred_answer='two', gt_answer=['2'] * 2 + ['3'] * 8, answer_type='number'),
        dict(pred_answer='The cat.', gt_answer=['cat'] + ['dog'] * 9, answer_type='other'),
    ]
    assert evaluate(*rows) == {
        'vqa/official_accuracy': pytest.approx(47.5),
        'vqa/yes_no/official_accuracy': pytest.approx(50),
        'vqa/number/official_accuracy': pytest.approx(60),
        'vqa/other/official_accuracy': pytest.approx(30),
    }


@pytest.mark.parametrize(
    ('text', 'same'),
    [
        ('Yes.', 'yes'),
        ('a red, round ball!', 'red round ball'),
        ('two', '2'),
        ('none', '0'),
        ('1,000', '1000'),
        ('3.5', '3.5'),
        ('t-shirt', 't shirt'),
        ('dont know', "don't know"),
        ("couldn'tve", "couldn't've"),
        ('couldntve', 'couldntve'),
        ('black/white', 'black white'),
        ('\tan\napple ', 'apple'),
        ('the', ''),
    ],
)
def test_answers_are_normalised_as_officially(text, same):
    assert normalise_vqa_answer(text) == same


def test_normalisation_and_whole_scores_agree_with_mmpretrain_on_random_texts():
    source, theirs = random.Random(0), VQAAcc()
    words = ['a', 'The', 'ten', 'none', '1,000', '2.5', '5.', 'U.S.A.', "it's", 'x', "'twas", *_CONTRACTIONS]
    marks = ['', '', '', *';/[]"{}()=+\\_-><@`,?!.', "'", ':', '\n', '\t']
    for _ in range(3000):
        pieces = [
            source.choice(marks) + source.choice(words) + source.choice(marks) for _ in range(source.randint(0, 4))
        ]
        text = source.choice(['', ' ']).join(pieces)
        assert normalise_vqa_answer(text) == theirs._process_answer(text), text
    # With none or at least four of ten equal answers the two rules give the same number.
    for matches in (0, *range(4, 11)):
        row = dict(pred_answer='red', gt_answer=['Red'] * matches + ['blue'] * (10 - matches))
        theirs.results = []
        theirs.process(None, [row])
        assert theirs.compute_metrics(theirs.results)['acc'] == pytest.approx(evaluate(row)['vqa/official_accuracy'])


def test_the_compressed_answers_of_mmpretrains_datasets_count_as_the_ten_they_stand_for():
    row = dict(pred_answer='red', gt_answer=['red', 'blue'], gt_answer_weight=[0.3, 0.7])
    assert evaluate(row)['vqa/official_accuracy'] == pytest.approx(90)
    with pytest.raises(ValueError, match=r'gt_answer_weight=\[0.35, 0.65\]'):
        evaluate(dict(row, gt_answer_weight=[0.35, 0.65]))


def test_a_single_answer_is_refused():
    with pytest.raises(ValueError, match=r"gt_answer=\['red'\].*AnswerAccuracy"):
        evaluate(dict(pred_answer='red', gt_answer='red'))
