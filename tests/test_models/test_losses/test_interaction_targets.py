"""AIA's target curves: the paper's table, stages by layer and by depth, measured curves."""

import json

import pytest

from mergemix_mm.models.losses.aia_loss import load_targets, read_curves, resampled_curve, stage_curve

# (delta, T) of methods.md, written out: how many layers, delta, T.
PAPER = {
    ('janus_pro', 'gen'): [(10, 0.2, 0.4), (10, 0.1, 0.4), (5, 0.1, 0.4), (5, 0.05, 0.2)],
    ('janus_pro', 'und'): [(10, 0.05, 0.1), (10, 0.05, 0.15), (5, 0.05, 0.3), (5, 0.05, 0.3)],
    ('emu3', 'gen'): [(10, 0.2, 0.4), (10, 0.1, 0.4), (5, 0.1, 0.4), (6, 0.05, 0.2), (1, 0.05, 0.2)],
    ('emu3', 'und'): [(10, 0.05, 0.1), (10, 0.05, 0.15), (5, 0.05, 0.3), (6, 0.05, 0.3), (1, 0.05, 0.2)],
}


@pytest.mark.parametrize(('preset', 'task'), PAPER)
def test_presets_are_the_papers_table(preset, task):
    rows = PAPER[preset, task]
    targets, deltas = load_targets(preset)[task](sum(count for count, _, _ in rows))
    assert targets == [target for count, _, target in rows for _ in range(count)]
    assert deltas == [delta for count, delta, _ in rows for _ in range(count)]


@pytest.mark.parametrize('num_layers', [1, 2, 8, 24, 28, 48])
@pytest.mark.parametrize(('preset', 'task'), PAPER)
def test_presets_serve_every_depth(preset, task, num_layers):
    targets, deltas = load_targets(preset)[task](num_layers)
    assert len(targets) == len(deltas) == num_layers


def test_presets_keep_their_relative_depth():
    # A third of the layers, another third, a sixth, a sixth.
    targets, _ = load_targets('janus_pro')['und'](24)
    assert targets == [0.1] * 8 + [0.15] * 8 + [0.3] * 8
    targets, deltas = load_targets('janus_pro')['gen'](60)
    assert targets == [0.4] * 50 + [0.2] * 10 and deltas == [0.2] * 20 + [0.1] * 30 + [0.05] * 10


def test_stages_by_layer_and_by_depth():
    stages = [dict(layers=(0, 2), target=0.1, delta=0.05), dict(layers=[2, 3], target=0.3, delta=0.2)]
    assert stage_curve(stages, 3) == ([0.1, 0.1, 0.3], [0.05, 0.05, 0.2])
    stages = [dict(depth=(0, 0.3333), target=0.1, delta=0.05), dict(depth=(0.3333, 1.0), target=0.3, delta=0.2)]
    assert stage_curve(stages, 3)[0] == [0.1, 0.3, 0.3]  # A rounded third is a third.


@pytest.mark.parametrize(
    ('ranges', 'message'),
    [
        ([(0, 2), (3, 4)], r'layer 2 of 4 belongs to 0 of the stages \[\(0, 2\), \(3, 4\)\]'),
        ([(0, 3), (2, 4)], 'layer 2 of 4 belongs to 2 of the stages'),
        ([(0, 3)], 'layer 3 of 4 belongs to 0'),
        ([(0, 5)], 'goes beyond the 4 layers of the model'),
    ],
)
def test_stages_that_do_not_cover_every_layer_once_are_refused(ranges, message):
    with pytest.raises(ValueError, match=message):
        stage_curve([dict(layers=extent, target=0.1, delta=0.1) for extent in ranges], 4)


@pytest.mark.parametrize(
    ('stage', 'message'),
    [
        (dict(layers=(0, 4), target=0.1), 'must have target, delta and one of'),
        (dict(layers=(0, 4), depth=(0, 1), target=0.1, delta=0.1), 'must have target, delta and one of'),
        (dict(layers=(0, 4), target=40, delta=0.1), r'a target in \[0, 1\]'),
        (dict(layers=(0, 4), target=0.4, delta=0), 'a delta > 0'),
        (dict(layers=(4, 4), target=0.4, delta=0.1), '0 <= first < end'),
        (dict(depth=(0, 10), target=0.4, delta=0.1), '<= 1 for depth'),
    ],
)
def test_stages_that_no_model_could_use_are_refused_at_once(stage, message):
    with pytest.raises(ValueError, match=message):
        load_targets(dict(und=[stage]))


def test_a_measured_curve_is_taken_as_it_is_and_resampled_for_other_depths(tmp_path):
    path = tmp_path / 'curve.json'
    path.write_text(json.dumps(dict(model='some', und=dict(mean=[0.1, 0.2, 0.4], std=[0.02, 0.1, 0.2]))))
    curves = load_targets(str(path))
    assert list(curves) == ['und']
    assert curves['und'](3) == ([0.1, 0.2, 0.4], [0.05, 0.1, 0.2])  # The smallest threshold is the paper's.
    targets, deltas = curves['und'](6)
    assert targets == pytest.approx([0.1, 0.125, 0.175, 0.25, 0.35, 0.4])
    assert deltas == pytest.approx([0.05, 0.05, 0.08, 0.125, 0.175, 0.2])
    assert resampled_curve([0.1, 0.2, 0.4], [0.1] * 3, 1) == ([0.2], [0.1])


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{', 'is not a JSON file'),
        ('[]', 'holds no curve'),
        ('{"generation": {}}', 'holds no curve'),
        ('{"gen": {"mean": [0.1]}}', r'gen.std=None must be a list of numbers in \[0, 1\]'),
        ('{"gen": {"mean": [0.1, NaN], "std": [0.1, 0.1]}}', 'gen.mean='),
        ('{"gen": {"mean": [40], "std": [0.1]}}', 'gen.mean='),
        ('{"gen": {"mean": [0.1], "std": [0.1, 0.1]}}', 'gen has 1 means and 2 standard deviations'),
    ],
)
def test_a_file_without_curves_is_refused(content, message, tmp_path):
    path = tmp_path / 'curve.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_curves(path)


def test_targets_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(ValueError, match='none.json.* cannot be read: No such file'):
        load_targets(str(tmp_path / 'none.json'))
    with pytest.raises(ValueError, match=r"targets='janus' must be one of \['emu3', 'janus_pro'\]"):
        load_targets('janus')
    with pytest.raises(ValueError, match=r"for tasks of \['gen', 'und'\]"):
        load_targets(dict(understanding=[]))
