"""Curves over layers, steps and beta: which numbers are drawn, and in which panel."""

import numpy as np
import pytest

from mergemix_mm.visualization import (
    curves,
    draw_accuracy_curves,
    draw_beta_sweep,
    draw_interaction_curves,
    draw_reward_curves,
)

REWARDS = dict(step=[10, 20], reward_chosen=[-1, -0.5], reward_rejected=[-1, -1], reward_margin=[0, 0.5])


@pytest.fixture
def lines(monkeypatch):
    """Draws, and gives the lines of each panel as label -> [x, y] instead of pixels."""
    monkeypatch.setattr(curves, 'figure_to_image', lambda figure: figure)

    def read(figure):
        return [{line.get_label(): np.array(line.get_data()).tolist() for line in axes.lines} for axes in figure.axes]

    return read


def bands(figure):
    """Lowest and highest number of each band."""
    return [
        path.get_extents().intervaly.round(6).tolist()
        for band in figure.axes[0].collections
        for path in band.get_paths()
    ]


@pytest.mark.parametrize(
    'figure',
    [
        lambda: draw_interaction_curves(dict(a=dict(mean=[0.7, 0.2])), title='step 4'),
        lambda: draw_reward_curves(REWARDS, title='run'),
        lambda: draw_beta_sweep([0, 1], dict(a=[1, 2]), title='mix'),
        lambda: draw_accuracy_curves([0, 1], dict(one=dict(a=[1, 2])), 'hidden', title='occlusion'),
    ],
    ids=['interaction', 'rewards', 'beta', 'accuracy'],
)
def test_figures_are_images(figure):
    image = figure()
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.std() > 10


def test_interaction_is_drawn_at_its_layers_with_bands_and_targets_of_these_layers(lines):
    shown = dict(gen=dict(mean=[0.3, 0.5], std=[0.1, 0.1], layers=[1, 3]), und=dict(mean=[0.2, 0.4]))
    figure = draw_interaction_curves(shown, dict(gen=([0.9, 0.4, 0.9, 0.6], [0.05] * 4)))
    (drawn,) = lines(figure)
    assert drawn.pop('gen') == [[1, 3], [0.3, 0.5]] and drawn.pop('und') == [[0, 1], [0.2, 0.4]]
    assert drawn.pop('target') == [[], []]
    assert list(drawn.values()) == [[[1, 3], [0.4, 0.6]]]
    assert bands(figure) == [[0.2, 0.6], [0.35, 0.65]]


def test_rewards_and_margins_have_a_panel_each_and_the_target_margin_is_one_minus_the_ratio(lines):
    left, right = lines(draw_reward_curves(REWARDS | dict(ratio_mean=[0.8, 0.9])))
    assert left == dict(chosen=[[10, 20], [-1, -0.5]], rejected=[[10, 20], [-1, -1]])
    assert right['margin reached'] == [[10, 20], [0, 0.5]]
    np.testing.assert_allclose(right['margin asked for'], [[10, 20], [0.2, 0.1]])
    assert 'margin asked for' not in lines(draw_reward_curves(REWARDS))[1]


def test_several_scores_have_a_mean_and_references_are_level(lines):
    (drawn,) = lines(draw_beta_sweep([0, 1], dict(real=[10, 60], synthetic=[30, 20]), dict(both=75)))
    assert drawn['real'] == [[0, 1], [10, 60]] and drawn['mean'] == [[0, 1], [20, 40]]
    assert drawn['both'][1] == [75, 75]
    assert 'mean' not in lines(draw_beta_sweep([0, 1], dict(real=[10, 60])))[0]


@pytest.mark.parametrize(
    'draw, message',
    [
        (lambda: draw_interaction_curves({}), 'curves'),
        (lambda: draw_interaction_curves(dict(a=dict(mean=[0.1])), dict(b=([0.1], [0.1]))), r"\['b'\]"),
        (lambda: draw_reward_curves(dict(step=[1], loss=[1.0])), 'reward_chosen, reward_rejected, reward_margin'),
        (lambda: draw_reward_curves(REWARDS | dict(reward_margin=[0.0])), "'reward_margin': 1"),
        (lambda: draw_beta_sweep([0, 0.5, 1], dict(real=(1, 2))), "3 betas.*{'real': 2}"),
        (lambda: draw_beta_sweep([0, 1], {}), 'draw_beta_sweep'),
    ],
)
def test_numbers_that_do_not_fit_are_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_accuracies_have_a_panel_each_and_dashed_curves_the_colour_of_their_partner(lines):
    panels = {'at random': dict(a=[3, 1], b=[2, 1], c=[2, 2]), 'salient': dict(a=[3, 0])}
    figure = draw_accuracy_curves([0, 10], panels, 'hidden [%]', dashed=dict(b='a'))
    first, second = lines(figure)
    assert first == {name: [[0, 10], values] for name, values in panels['at random'].items()}
    assert second == dict(a=[[0, 10], [3, 0]])
    a, b, c = figure.axes[0].lines
    assert a.get_color() == b.get_color() != c.get_color() and a.get_linestyle() == '-' != b.get_linestyle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['a', 'b', 'c']
    with pytest.raises(ValueError, match=r"needs 1 values in each curve, got {'a': 2}"):
        draw_accuracy_curves([0], dict(x=dict(a=[1, 2])), 'x')
