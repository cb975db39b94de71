"""Tests of AnswerLoss."""

import math

import pytest
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmpretrain.structures import DataSample

from mergemix_mm.evaluation import AnswerLoss


def evaluate(scores):
    evaluator = Evaluator(METRICS.build(dict(type='AnswerLoss', prefix='text')))
    for logp, length in scores:
        evaluator.process([DataSample(metainfo=dict(answer_logp=logp, answer_length=length))])
    return evaluator.evaluate(len(scores))


def test_a_token_counts_alike_in_a_short_and_in_a_long_answer():
    # Not the mean of 3 and 1 nats per token.
    assert evaluate([(-3.0, 1), (-9.0, 9), (0.0, 0)]) == {
        'text/loss': pytest.approx(1.2),
        'text/perplexity': pytest.approx(math.exp(1.2)),
    }


def test_guessing_among_n_tokens_has_the_perplexity_n():
    assert evaluate([(-3 * math.log(64), 3), (-5 * math.log(64), 5)])['text/perplexity'] == pytest.approx(64)


def test_a_hopeless_model_has_an_infinite_perplexity():
    assert evaluate([(-4000.0, 2)]) == {'text/loss': 2000, 'text/perplexity': math.inf}


def test_generated_answers_and_empty_ones_are_refused():
    with pytest.raises(KeyError, match='generate=False'):
        AnswerLoss().process(None, [dict(pred_answer='a')])
    with pytest.raises(ValueError, match='no answer token'):
        evaluate([(0.0, 0)])
