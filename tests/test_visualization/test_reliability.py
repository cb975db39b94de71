"""Tests of the reliability diagram."""

from unittest import mock

import numpy as np
from matplotlib.axes import Axes

from mergemix_mm.visualization import draw_reliability_diagram

COUNT, CONFIDENCE, ACCURACY = np.array([0, 2, 6]), np.array([0, 0.5, 0.9]), np.array([0, 1.0, 0.5])


def test_diagram_states_the_expected_calibration_error():
    texts = []
    with mock.patch.object(Axes, 'text', autospec=True, side_effect=lambda self, x, y, text, **_: texts.append(text)):
        image = draw_reliability_diagram(COUNT, CONFIDENCE, ACCURACY)
    # 2/8 * 0.5 + 6/8 * 0.4; 2/8 * 1 + 6/8 * 0.5; 2/8 * 0.5 + 6/8 * 0.9
    assert texts == ['ECE 42.5%\naccuracy 62.5%\nconfidence 80.0%']
    assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8


def test_bars_show_accuracy_and_the_gap_on_its_side():
    bars = {}
    plain = Axes.bar

    def record(self, x, height, bottom=0, **kwargs):
        bars[kwargs.get('label', 'share')] = (np.asarray(height).round(6).tolist(), np.asarray(bottom).tolist())
        return plain(self, x, height, bottom=bottom, **kwargs)

    with mock.patch.object(Axes, 'bar', record):
        draw_reliability_diagram(COUNT, CONFIDENCE, ACCURACY)
    assert bars == {
        'accuracy': ([1.0, 0.5], 0),
        'overconfident by': ([0.4], [0.5]),
        'underconfident by': ([-0.5], [1.0]),
        'share': ([0.0, 25.0, 75.0], 0),
    }
