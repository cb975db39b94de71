"""Tests of the expected calibration error of classifiers and of generated answers."""

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmengine.visualization import Visualizer
from mmpretrain.structures import DataSample

from mergemix_mm.evaluation.metrics.calibration_error import CalibrationBins, CalibrationError


def _samples(confidences, corrects, num_classes=4):
    """Data samples that predict class 1 with a given confidence."""
    samples = []
    for confidence, correct in zip(confidences, corrects):
        score = torch.full((num_classes,), (1 - confidence) / (num_classes - 1))
        score[1] = confidence
        samples.append(DataSample().set_gt_label(1 if correct else 0).set_pred_score(score))
    return samples


def _evaluate(samples, **kwargs):
    evaluator = Evaluator(METRICS.build({'type': 'CalibrationError', **kwargs}))
    for start in range(0, len(samples), 3):
        evaluator.process(samples[start : start + 3])
    return evaluator.evaluate(len(samples))


def test_equals_the_numbers_worked_out_by_hand():
    # Two bins hold something: (0.6, 0.8] with mean confidence 0.7, accuracy 1/2 (4 samples), gap 0.2;
    # (0.8, 1.0] with mean confidence 0.925, accuracy 1 (2 samples), gap -0.075.
    metrics = _evaluate(_samples([0.65, 0.75, 0.65, 0.75, 0.9, 0.95], [1, 0, 0, 1, 1, 1]), bins=5)
    assert metrics == {
        'calibration/ece': pytest.approx(100 * (4 * 0.2 + 2 * 0.075) / 6, abs=1e-4),
        'calibration/mce': pytest.approx(20, abs=1e-4),
        'calibration/overconfidence': pytest.approx(100 * (4 * 0.2 - 2 * 0.075) / 6, abs=1e-4),
    }


def test_is_zero_for_a_calibrated_classifier():
    metrics = _evaluate(_samples([0.75] * 4 + [0.5] * 4, [1, 1, 1, 0, 1, 1, 0, 0]))
    assert metrics['calibration/ece'] == pytest.approx(0, abs=1e-6)
    assert metrics['calibration/mce'] == pytest.approx(0, abs=1e-6)


def test_is_one_hundred_for_a_classifier_that_is_sure_and_always_wrong():
    metrics = _evaluate(_samples([1.0] * 5, [0] * 5))
    assert metrics == {'calibration/ece': 100, 'calibration/mce': 100, 'calibration/overconfidence': 100}


def test_overconfidence_is_negative_for_a_classifier_that_doubts_its_right_answers():
    assert _evaluate(_samples([0.4] * 5, [1] * 5))['calibration/overconfidence'] == pytest.approx(-60, abs=1e-4)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(dtype):
    confidence = torch.tensor([0.0, 0.2, 0.21, 0.4, 0.6, 0.8, 1.0], dtype=dtype)
    bins = CalibrationBins.from_predictions(confidence, torch.ones(7, dtype=torch.bool), 5)
    assert bins.count.tolist() == [2, 2, 1, 1, 1]


def test_empty_bins_count_for_nothing():
    bins = CalibrationBins.from_predictions(torch.tensor([0.95, 0.95]), torch.tensor([True, False]), 10)
    assert bins.count.tolist() == [0] * 9 + [2]
    assert bins.confidence[:9].tolist() == bins.accuracy[:9].tolist() == [0] * 9
    assert bins.expected_error() == bins.maximum_error() == pytest.approx(0.45)


def test_equals_a_plain_loop_over_the_bins():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(500, generator=generator, dtype=torch.float64)
    correct = torch.rand(500, generator=generator) < confidence
    expected = 0
    for low in np.arange(15) / 15:
        chosen = (confidence > low) & (confidence <= low + 1 / 15)
        if chosen.any():
            gap = correct[chosen].double().mean() - confidence[chosen].mean()
            expected += chosen.sum() / 500 * gap.abs()
    assert CalibrationBins.from_predictions(confidence, correct).expected_error() == pytest.approx(float(expected))


def test_only_the_first_samples_count_where_the_loader_padded():
    evaluator = Evaluator(CalibrationError())
    evaluator.process(_samples([1.0, 1.0, 1.0], [1, 1, 0]))
    assert evaluator.evaluate(2)['calibration/ece'] == 0


def test_figure_is_written_to_a_file(tmp_path):
    from PIL import Image

    path = tmp_path / 'new' / 'reliability.png'
    _evaluate(_samples([0.9, 0.6, 0.3], [1, 0, 0]), figure=str(path))
    assert np.asarray(Image.open(path)).std() > 10
    assert [file.name for file in path.parent.iterdir()] == ['reliability.png']


def test_figure_goes_to_the_current_visualizer(tmp_path):
    Visualizer.get_instance(
        'test_calibration_error', vis_backends=[dict(type='LocalVisBackend')], save_dir=str(tmp_path)
    )
    _evaluate(_samples([0.9, 0.6, 0.3], [1, 0, 0]), figure='reliability')
    assert [path.stem.rsplit('_', 1)[0] for path in tmp_path.rglob('*.png')] == ['reliability']


def test_a_sample_without_scores_is_refused():
    with pytest.raises(KeyError, match=r"'pred_score'.*gt_label.*pred_label"):
        _evaluate([DataSample().set_gt_label(0).set_pred_label(0)])


@pytest.mark.parametrize('score', [[2.0, -1.0], [0.5, float('nan')]])
def test_scores_that_are_no_probabilities_are_refused(score):
    with pytest.raises(ValueError, match=r'pred_score'):
        _evaluate([DataSample().set_gt_label(0).set_pred_score(torch.tensor(score))])


def test_several_labels_are_refused():
    with pytest.raises(ValueError, match=r'gt_label=\[0, 1\]'):
        _evaluate([DataSample().set_gt_label([0, 1]).set_pred_score(torch.tensor([0.5, 0.5]))])


@pytest.mark.parametrize('bins', [0, -3, 2.5, True])
def test_bad_bins_are_refused(bins):
    with pytest.raises(ValueError, match=f'bins={bins!r}'):
        CalibrationError(bins=bins)


def sample(confidence, answer, truth):
    found = DataSample(metainfo=dict(gt_answer=truth))
    found.set_field(answer, 'pred_answer')
    found.set_field(confidence, 'pred_confidence')
    return found


def test_answers_equal_the_numbers_worked_out_by_hand():
    # Of five bins, (0.6, 0.8] holds mean confidence 0.7 with accuracy 1/2, and (0.8, 1] holds 0.9 with accuracy 1.
    samples = [
        sample(torch.tensor(0.65), 'A red car.', 'red car'),
        sample(0.75, 'blue', ['red', 'green']),
        sample(torch.tensor([0.9]), 'Green', ['red', 'green']),
    ]
    assert _evaluate(samples, type='AnswerCalibrationError', bins=5) == {
        'calibration/ece': pytest.approx(100 * (2 * 0.2 + 0.1) / 3, abs=1e-4),
        'calibration/mce': pytest.approx(20, abs=1e-4),
        'calibration/overconfidence': pytest.approx(100 * (2 * 0.2 - 0.1) / 3, abs=1e-4),
    }


@pytest.mark.parametrize('confidence', [1.2, -0.7, float('nan'), torch.tensor([0.1, 0.2])])
def test_what_is_no_probability_is_refused(confidence):
    with pytest.raises(ValueError, match=r'AnswerCalibrationError: pred_confidence='):
        _evaluate([sample(confidence, 'a', 'a')], type='AnswerCalibrationError')
