"""Tests of the benchmarks of AIA: targets of the arms, paired trainings, and that the scripts run with --quick."""

import importlib
import json
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

TOOLS = Path(__file__).parents[3] / 'tools' / 'benchmarks'
CURVES = dict(gen=dict(mean=[0.4, 0.6], std=[0.01, 0.1]), und=dict(mean=[0.1, 0.2], std=[0.2, 0.2]))


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ('kind', 'gen', 'und'),
    [
        ('teachers', [(0.4, 0.05), (0.6, 0.1)], [(0.1, 0.2), (0.2, 0.2)]),
        ('swapped', [(0.1, 0.2), (0.2, 0.2)], [(0.4, 0.05), (0.6, 0.1)]),
        ('flat', [(0.5, 0.075)] * 2, [(0.15, 0.2)] * 2),
    ],
)
def test_targets_are_the_curves_those_of_the_other_task_or_flat(load, kind, gen, und):
    stages = load('aia_targets').targets(kind, CURVES)
    for task, expected in dict(gen=gen, und=und).items():
        assert [stage['layers'] for stage in stages[task]] == [(0, 1), (1, 2)]
        found = [(stage['target'], stage['delta']) for stage in stages[task]]
        assert [number for pair in found for number in pair] == pytest.approx([x for pair in expected for x in pair])


def test_aia_without_weight_trains_as_no_aia_does_and_is_switched_off_behind(load):
    training = load('lib.janus')
    aia, weights = load('aia_targets').AIALoss('janus_pro', weight=0.0), []
    batches = {task: training.encode(task, 16)[0] for task in training.TASKS}
    for criterion in (None, aia):
        tuner = training.build_tuner(0)
        training.train(tuner, batches, 2, seed=0, aia=criterion, batch_size=4)
        assert tuner.alignment is None
        weights.append(torch.cat([parameter.flatten() for parameter in tuner.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-6)


def test_target_runs_are_stored_with_the_teachers_and_not_repeated(load, tmp_path, monkeypatch, capsys):
    benchmark, output = load('aia_targets'), tmp_path / 'runs.json'
    arms = ('no AIA', 'swapped, weight x 10')
    monkeypatch.setattr(benchmark, 'ARMS', {name: benchmark.ARMS[name] for name in arms})
    runs = benchmark.main(['--quick', '--output', str(output)])
    assert set(runs) == {f'{arm}/{seed}' for arm in arms for seed in (0, 1)}
    assert runs['no AIA/0']['ntp_gen'] != runs['swapped, weight x 10/0']['ntp_gen']
    assert runs['no AIA/0']['distance'] == runs['no AIA/0']['teacher_distance'] > 0
    assert "Correlation of the teachers' curves over the 4 layers" in capsys.readouterr().out

    teachers = json.loads((tmp_path / 'runs_teachers_quick.json').read_text())
    assert all(0 < value < 1 for task in ('gen', 'und') for value in teachers[task]['mean'])
    monkeypatch.setattr(benchmark, 'run', None)
    monkeypatch.setattr(benchmark, 'train_teachers', None)
    assert benchmark.main(['--quick', '--output', str(output)]) == json.loads(output.read_text())['runs']


def test_step_cost_of_aia_covers_both_tasks_and_ways(load, tmp_path, capsys):
    path = tmp_path / 'step.json'
    measured = load('aia_step').main(['--quick', '--output', str(path)])
    assert set(measured) == {'gen', 'und'}
    for results in measured.values():
        assert list(results['times']) == ['next tokens alone', 'AIA, fused', 'AIA, attention maps']
        assert min(results['memory'].values()) > 0
    assert json.loads(path.read_text())['results'] == measured
    assert '| understanding | AIA, fused ' in capsys.readouterr().out


def test_cost_of_recording_covers_every_backend(load, tmp_path, capsys):
    path = tmp_path / 'cost.json'
    measured = load('interaction_cost').main(['--quick', '--output', str(path)])
    assert list(measured) == ['layer, L = 16', 'layer, L = 32', 'model of 2 layers, L = 32']
    for results in measured.values():
        assert list(results['times']) == ['sdpa, not recorded', 'fused intensity', 'log-sum-exp', 'attention maps']
    assert json.loads(path.read_text())['results'] == measured
    assert '| layer, L = 32             | log-sum-exp ' in capsys.readouterr().out


def test_a_length_without_room_for_the_image_is_refused(load, capsys):
    with pytest.raises(SystemExit):
        load('aia_step').parse_args(['--length', '600'])
    assert 'must hold 576 image tokens' in capsys.readouterr().err
