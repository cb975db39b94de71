"""Comparing answers up to their writing."""

import pytest

from mergemix_mm import evaluation
from mergemix_mm.evaluation.metrics.answers import get_field, group_of, is_right, normalise_answer, per_group


@pytest.mark.parametrize(
    ('written', 'other'),
    [
        ('The Red  car.', 'red car'),
        ('T-shirt!', 't shirt'),
        ('1,250,000', '1250000'),
        ('\u201cIt\u2019s a dog\u201d', "it's dog"),
        ('\uff12', '2'),
    ],
)
def test_answers_that_differ_in_writing_are_the_same(written, other):
    assert normalise_answer(written) == normalise_answer(other)


@pytest.mark.parametrize(
    ('one', 'other'),
    [('3.5', '35'), ('-2', '2'), ('A', 'the'), ('+', '?'), ('', 'a'), ('1,2', '12'), ('two', '2'), ('red', 'reddish')],
)
def test_answers_that_say_something_else_differ(one, other):
    assert normalise_answer(one) != normalise_answer(other)


def test_one_of_several_accepted_answers_suffices():
    assert is_right('A sofa.', ['couch', 'sofa']) and not is_right('chair', ['couch', 'sofa'])
    assert is_right('Couch', 'couch') and not is_right('c', 'couch')


def test_groups_are_counted_apart_and_rows_without_one_only_in_the_whole():
    rows = [dict(group='b'), dict(group='a'), dict(group='b'), dict(group=None)]
    assert per_group(rows, 'group', lambda found: {'n': len(found)}) == {'n': 4, 'a/n': 1, 'b/n': 2}


def test_the_first_of_split_category_and_type_groups_a_sample():
    assert group_of(dict(question_type='count', category='easy', split='val')) == 'val'
    assert group_of(dict(question_type='count', category=None)) == 'count'
    assert group_of(dict(answer='a')) is None


@pytest.mark.parametrize('answer', [None, 3, ['B'], {'answer': 'B'}])
def test_an_answer_that_is_no_text_is_refused_by_name(answer):
    with pytest.raises(ValueError, match='AnyMetric: pred_answer='):
        get_field(dict(pred_answer=answer), 'pred_answer', 'AnyMetric')


FIELDS = dict(pred_answer='yes', gt_answer='yes')
BOXES = dict(pred_answer='', gt_boxes=[[0, 0, 1, 1]], image_size=(2, 2))


@pytest.mark.parametrize(
    ('metric', 'fields'),
    [
        ('AnswerAccuracy', FIELDS),
        ('ANLSMetric', FIELDS),
        ('RelaxedAccuracy', FIELDS),
        ('VQAv2Accuracy', FIELDS),
        ('POPEMetric', FIELDS),
        ('AnswerCalibrationError', FIELDS | dict(pred_confidence=1.0)),
        ('AnswerLoss', dict(answer_logp=-1.0, answer_length=1)),
        ('MMEMetric', FIELDS | dict(category='count', img_path='a.jpg')),
        ('MultipleChoiceMetric', FIELDS | dict(choices=['yes', 'no'])),
        ('ReferringBoxMetric', BOXES),
        ('TextDetectionMetric', BOXES | dict(label='cat', source='a.json:1')),
    ],
)
def test_a_metric_names_itself_and_a_missing_field_and_refuses_an_empty_set(metric, fields):
    for key in fields:
        # The field comes from the model or from the dataset; the message says from which.
        origin = 'predict' if key.startswith('pred_') else ''
        with pytest.raises(KeyError, match=f"{metric}: .*'{key}'.*{origin}"):
            getattr(evaluation, metric)().process(None, [{name: fields[name] for name in fields if name != key}])
    with pytest.raises(ValueError, match=f'{metric}: .*empty'):
        getattr(evaluation, metric)().evaluate(0)
