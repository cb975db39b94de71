"""AIALoss: targets of the chosen layers, weights per task, ratios of loss values, schedules; target curves."""

import copy
import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mergemix_mm.functional import aia_loss
from mergemix_mm.models.losses import AIALoss
from mergemix_mm.models.losses.aia_loss import load_targets, read_curves, resampled_curve, stage_curve

STAGES = [dict(layers=(0, 2), target=0.4, delta=0.2), dict(layers=(2, 4), target=0.1, delta=0.05)]
TARGET, DELTA = torch.tensor([0.4, 0.4, 0.1, 0.1]), torch.tensor([0.2, 0.2, 0.05, 0.05])


@pytest.fixture
def intensity():
    return torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_it_is_the_weighted_loss_against_the_tasks_targets(intensity):
    loss, valid = AIALoss(dict(gen=STAGES, und=STAGES)), torch.tensor([True, False, True])
    plain = aia_loss(intensity, TARGET, DELTA, valid)
    torch.testing.assert_close(loss(intensity, 'gen', valid), 5 * plain)
    torch.testing.assert_close(loss(intensity, 'und', valid), 10 * plain)
    loss(intensity, 'gen', valid).backward()
    assert intensity.grad[:, 1].abs().max() == 0 and intensity.grad[:, [0, 2]].abs().min() > 0


def test_rows_may_be_some_of_the_layers(intensity):
    loss = AIALoss(dict(und=STAGES), weight=1)
    found = loss(intensity[[1, 3]], 'und', layers=(1, 3), num_layers=4)
    torch.testing.assert_close(found, aia_loss(intensity[[1, 3]], TARGET[[1, 3]], DELTA[[1, 3]]))


def test_presets_and_tasks_differ():
    loss = AIALoss('janus_pro', weight=1.0)
    intensity = torch.full((30, 1), 0.4)
    # Generation: right but for the last five layers, which should be 0.2.
    expected = 5 * 0.05 * (0.2 - 0.025) / 30
    assert loss(intensity, 'gen').item() == pytest.approx(expected)
    expected = 0.05 * (10 * (0.3 - 0.025) + 10 * (0.25 - 0.025) + 10 * (0.1 - 0.025)) / 30
    assert loss(intensity, 'und').item() == pytest.approx(expected)


def test_a_config_builds_it(intensity):
    config = Config(dict(loss=dict(type='AIALoss', targets=dict(und=STAGES), weight=dict(und=3.0))))
    loss = copy.deepcopy(MODELS.build(config.loss))
    torch.testing.assert_close(loss(intensity, 'und'), 3 * aia_loss(intensity, TARGET, DELTA))


def test_a_ratio_makes_the_next_token_loss_so_many_times_the_weighted_loss(intensity):
    loss = AIALoss(dict(und=STAGES, gen=STAGES), weight=dict(und=dict(type='ratio', ntp_over_aia=50), gen=2.0))
    ntp = torch.tensor(2.5, requires_grad=True)
    found = loss(intensity, 'und', ntp_loss=ntp)
    assert found.item() == pytest.approx(2.5 / 50)
    # The weight is a number: no gradient through it, to neither loss.
    plain = aia_loss(intensity, TARGET, DELTA)
    expected = torch.autograd.grad(plain, intensity)[0] * (0.05 / plain.item())
    torch.testing.assert_close(torch.autograd.grad(found, intensity)[0], expected)
    torch.testing.assert_close(loss(intensity, 'gen', ntp_loss=ntp), 2 * plain)
    with pytest.raises(ValueError, match='needs the next-token loss'):
        loss(intensity, 'und')


def test_a_ratio_stops_at_the_papers_weight_and_at_no_sample(intensity):
    loss = AIALoss(dict(und=STAGES), weight=dict(type='ratio', ntp_over_aia=50))
    near = (TARGET[:, None] + 0.01).expand(4, 3).clone().requires_grad_()
    found = loss(near, 'und', ntp_loss=torch.tensor(3.0))
    assert found.item() == pytest.approx(40 * 0.01**2 / 2, rel=1e-4)
    nobody = loss(near, 'und', torch.zeros(3, dtype=torch.bool), torch.tensor(3.0))
    nobody.backward()
    assert nobody.item() == 0 and near.grad.abs().max() == 0


def test_a_schedule_multiplies_the_weight(intensity):
    plain = AIALoss(dict(und=STAGES))(intensity, 'und').item()
    loss = AIALoss(dict(und=STAGES), schedule=[(0.1, 0), (0.3, 1), (0.5, 1), (1, 0.5)])
    found = {}
    assert loss(intensity, 'und').item() == 0  # Before anybody has said how far it is.
    for progress in (0.0, 0.1, 0.2, 0.4, 0.75, 1.0):
        loss.set_progress(progress)
        found[progress] = loss(intensity, 'und').item() / plain
    assert found == pytest.approx({0.0: 0, 0.1: 0, 0.2: 0.5, 0.4: 1, 0.75: 0.75, 1.0: 0.5})


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(weight=-1), 'weight -1 must be a number >= 0'),
        (dict(weight='50:1'), "weight '50:1' must be"),
        (dict(weight=dict(understanding=1)), r"one per task of \['gen', 'und'\]"),
        (dict(weight=dict(type='ratio', ntp_over_aia=0)), 'ntp_over_aia'),
        (dict(weight=dict(type='share', ntp_over_aia=50)), "dict\\(type='ratio'"),
        (dict(schedule=[]), r'schedule=\[\] must be points'),
        (dict(schedule=[(0.5, 1), (0.1, 0)]), 'rising progress'),
        (dict(schedule=[(0, 1), (2, 0)]), r'progress in \[0, 1\]'),
        (dict(targets='qwen'), "targets='qwen' must be one of"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AIALoss(**kwargs)


def test_an_unknown_task_and_uncovered_layers_are_refused(intensity):
    with pytest.raises(ValueError, match=r"task='vqa' has no targets; those of \['gen', 'und'\] are given"):
        AIALoss()(intensity, 'vqa')
    with pytest.raises(ValueError, match=r"task='gen' has no targets; those of \['und'\]"):
        AIALoss(dict(und=STAGES))(intensity, 'gen')
    with pytest.raises(ValueError, match="has none for task='und'"):
        AIALoss(weight=dict(gen=5.0))(intensity, 'und')
    with pytest.raises(ValueError, match='layer 4 of 6 belongs to 0 of the stages'):
        AIALoss(dict(und=STAGES))(intensity, 'und', num_layers=6)
    with pytest.raises(ValueError, match=r'target \[30\] and delta \[30\] must be \[4\]'):
        AIALoss()(intensity, 'und', num_layers=30)  # Four rows, but nobody says of which layers.


# Target curves: the paper's table, stages by layer and by depth, measured curves.

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
