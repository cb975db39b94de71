"""Tests of AnswerCalibrationError: what differs from CalibrationError."""

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmpretrain.structures import DataSample

from mergemix_mm.evaluation import AnswerCalibrationError


def sample(confidence, answer, truth):
    found = DataSample(metainfo=dict(gt_answer=truth))
    found.set_field(answer, 'pred_answer')
    found.set_field(confidence, 'pred_confidence')
    return found


def evaluate(samples, **kwargs):
    evaluator = Evaluator(METRICS.build(dict(type='AnswerCalibrationError', **kwargs)))
    evaluator.process(samples)
    return evaluator.evaluate(len(samples))


def test_equals_the_numbers_worked_out_by_hand():
    # Of five bins, (0.6, 0.8] holds mean confidence 0.7 with accuracy 1/2, and (0.8, 1] holds 0.9 with accuracy 1.
    samples = [
        sample(torch.tensor(0.65), 'A red car.', 'red car'),
        sample(0.75, 'blue', ['red', 'green']),
        sample(torch.tensor([0.9]), 'Green', ['red', 'green']),
    ]
    assert evaluate(samples, bins=5) == {
        'calibration/ece': pytest.approx(100 * (2 * 0.2 + 0.1) / 3, abs=1e-4),
        'calibration/mce': pytest.approx(20, abs=1e-4),
        'calibration/overconfidence': pytest.approx(100 * (2 * 0.2 - 0.1) / 3, abs=1e-4),
    }


@pytest.mark.parametrize('confidence', [1.2, -0.7, float('nan'), torch.tensor([0.1, 0.2])])
def test_what_is_no_probability_is_refused(confidence):
    with pytest.raises(ValueError, match=r'AnswerCalibrationError: pred_confidence=\[.* must be one probability'):
        evaluate([sample(confidence, 'a', 'a')])


def test_a_sample_without_confidence_is_refused():
    with pytest.raises(KeyError, match="AnswerCalibrationError: a data sample has no 'pred_confidence'"):
        evaluate([DataSample(metainfo=dict(pred_answer='a', gt_answer='a'))])


def test_errors_of_the_base_name_this_metric():
    with pytest.raises(ValueError, match='AnswerCalibrationError: there is no prediction'):
        AnswerCalibrationError().evaluate(0)
