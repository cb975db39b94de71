"""Tests of the benchmark of SPHINX: what the encoders see, what a batch holds, what an arm trains, and --quick."""

import importlib
import json

import pytest
import torch
from repository_configs import ROOT

IMAGE_TOKEN = 216


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Encoders that learnt for two steps, and a language model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'tools' / 'benchmarks'))
        parts = tmp_path_factory.mktemp('sphinx') / 'parts'
        training = importlib.import_module('lib.sphinx')
        training.pretrain_encoders(parts, 2, num_images=8)
        training.pretrain_language_model(parts, 2, seed=0)
    return parts


def test_grey_images_hide_which_channel_is_which(load):
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    grey = load('lib.sphinx').grey(images)
    assert grey.shape == images.shape
    torch.testing.assert_close(grey, load('lib.sphinx').grey(images[:, [2, 0, 1]]))
    torch.testing.assert_close(grey[:, 0], images.mean(dim=1))


def test_blurred_images_keep_large_tones_and_lose_fine_patterns(load):
    blurred = load('lib.sphinx').blurred
    halves = torch.zeros(1, 3, 48, 48)
    halves[..., 24:] = 1
    assert blurred(halves)[..., :12].max() < 0.05 and blurred(halves)[..., 36:].min() > 0.95
    row, column = torch.meshgrid(torch.arange(48), torch.arange(48), indexing='ij')
    board = ((row + column) % 2).float().expand(1, 3, 48, 48)
    assert (blurred(board) - 0.5).abs().max() < 0.01


@pytest.mark.parametrize(('coloured', 'taught'), [(0.0, 1), (1.0, 0)])
def test_a_tower_for_one_attribute_does_not_teach_the_heads_of_the_other(load, coloured, taught):
    tower = load('lib.tower')
    data = load('lib.sphinx').scenes(2, 4, seed=0)
    _, heads = tower.pretrain_tower(2, data=data, coloured=coloured)
    assert heads.in_cell[taught].weight.grad.abs().sum() > 0
    assert heads.in_cell[1 - taught].weight.grad is None and heads.present[1 - taught].weight.grad is None


def test_scenes_alternate_between_large_and_small_things(load):
    batches = list(load('lib.sphinx').scenes(3, 5, seed=1))
    assert [batch[1].shape for batch in batches] == [(5, 9), (5, 36), (5, 9)]
    for images, colors, shapes in batches:
        assert images.shape == (5, 3, 48, 48)
        assert torch.equal(colors > 0, shapes > 0) and (colors > 0).sum(dim=1).min() >= 2


def test_batches_have_one_modality_and_tasks_their_weights(load):
    training = load('lib.sphinx')
    mix = training.encode_mix((('vqa', 3), ('text_only', 1)), 16)
    batches = training.mixed_rows(mix, 8, seed=0)
    found = [next(batches) for _ in range(16)]
    with_images = ['pixel_values' in batch for batch in found]
    assert sum(with_images) == 12  # Of two epochs.
    for batch, has_images in zip(found, with_images, strict=True):
        assert ((batch['input_ids'] >= IMAGE_TOKEN).sum(dim=1) == (38 if has_images else 0)).all()
        # No column is padding alone.
        assert batch['attention_mask'].any(dim=0).all()
        assert batch['input_ids'].shape == batch['labels'].shape == batch['attention_mask'].shape


def test_training_leaves_the_encoders_as_they_are(load, folder):
    training = load('lib.sphinx')
    tuner = training.build_tuner(folder, 0)
    before = {key: value.clone() for key, value in tuner.state_dict().items()}
    training.train(tuner, training.encode_mix((('color', 1),), 16), 2, seed=0, batch_size=4)
    changed = {key for key, value in tuner.state_dict().items() if not torch.equal(value, before[key])}
    assert not any('backbone' in key for key in changed)
    assert any('neck' in key for key in changed) and any('language_model' in key for key in changed)


def test_a_frozen_language_model_keeps_its_loss_and_a_trained_one_does_not(load, folder):
    studies = load('shapes_sphinx')
    sizes, arms = studies.Sizes(2, 16, 4), studies.STUDIES['unfreezing'].arms
    frozen, trained = (studies.unfreezing(arms[name], 0, sizes, folder) for name in ('frozen', 'unfrozen'))
    assert frozen['text_only'] == frozen['before'] == trained['before']
    assert trained['text_only'] != trained['before']


def test_specialists_branch_from_the_start_and_mix_by_beta(load, folder, monkeypatch):
    studies, order = load('shapes_sphinx'), iter((1, 10, 20, 30))

    def train(tuner, *_):  # Start, colour, shape, both.
        with torch.no_grad():
            tuner.vlm.model.markers.weight.fill_(tuner.vlm.model.markers.weight[0, 0].round() + next(order))

    def evaluate(tuner, task, *_):
        return {task: tuner.vlm.model.markers.weight[0, 0].item()}

    monkeypatch.setattr(studies, 'train', train)
    monkeypatch.setattr(studies, 'evaluate', evaluate)
    found = studies.weights({}, 0, studies.Sizes(2, 16, 4), folder)
    start = found['start/color']
    seen = {name.removesuffix('/shape'): value - start for name, value in found.items() if name.endswith('/shape')}
    expected = {'start': 0, 'both': 30, 'beta 0.0': 20, 'beta 0.25': 17.5, 'beta 0.5': 15, 'beta 0.75': 12.5}
    assert seen == pytest.approx(expected | {'beta 1.0': 10})


def test_the_weight_table_has_means_over_the_seeds(load):
    benchmark = load('shapes_sphinx')
    runs = {
        'weights: specialists/0': {'beta 0.5/color': 80.0, 'beta 0.5/shape': 60.0, 'seconds': 1.0},
        'weights: specialists/1': {'beta 0.5/color': 90.0, 'beta 0.5/shape': 50.0, 'seconds': 1.0},
    }
    (row,) = benchmark.table('weights', runs, 2).splitlines()[2:]
    assert [cell.strip() for cell in row.split('|')[1:-1]] == [
        'beta 0.5',
        '85.00 ± 7.07',
        '55.00 ± 7.07',
        '70.00 ± 0.00',
    ]


def test_all_studies_run_quickly_and_only_what_is_missing_runs_again(load, tmp_path, monkeypatch, capsys):
    benchmark, output = load('shapes_sphinx'), tmp_path / 'runs.json'
    runs = benchmark.main(['--quick', '--output', str(output)])
    arms = [f'{name}: {arm}' for name, study in benchmark.STUDIES.items() for arm in study.arms]
    assert set(runs) == {f'{arm}/{seed}' for arm in arms for seed in (0, 1)}
    tokens = [runs[f'views: {arm}/0']['tokens'] for arm in benchmark.STUDIES['views'].arms]
    assert tokens == [38, 190]
    printed = capsys.readouterr().out
    assert '| both, mlp ' in printed and '| beta 0.75 ' in printed and '| grey    | shapes ' in printed

    stored = json.loads(output.read_text())
    del stored['runs']['tasks: instructions/1'], stored['runs']['views: 1 view/0']
    output.write_text(json.dumps(stored))
    again = []
    monkeypatch.setattr(benchmark, 'run', lambda arm, seed, **_: again.append((arm, seed)) or runs[f'{arm}/{seed}'])
    monkeypatch.setattr(benchmark, 'pretrain_encoders', None)
    monkeypatch.setattr(benchmark, 'pretrain_language_model', None)
    benchmark.main(['--quick', '--output', str(output), '--study', 'tasks'])
    assert again == [('tasks: instructions', 1)]
    assert '[4/4] tasks: instructions, seed 1' in capsys.readouterr().out
