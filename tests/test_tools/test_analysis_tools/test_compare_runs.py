"""tools/analysis_tools/compare_runs.py: the numbers, what is bold, and what is left out and named."""

import json
import statistics

import pytest

CONFIG = """
model = dict(type='MixupClassifier', train_cfg=dict(augments=[dict(type='MergeMix', ratio={ratio!r})]))
train_dataloader = dict(dataset=dict(type='CIFAR100'))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr={lr}))
train_cfg = dict(by_epoch=True, max_epochs={epochs})
randomness = dict(seed={seed})
resume = {resume}
work_dir = 'anywhere'
"""
NAMES = {
    'mergemix': 'deit-small_1xb100-mergemix-coslr-200e_cifar100',
    'cutmix': 'deit-small_1xb100-cutmix-coslr-200e_cifar100',
    'tiny': 'deit-tiny_1xb100-cutmix-coslr-200e_cifar100',
}


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis_tools/compare_runs')


@pytest.fixture
def add(tmp_path):
    """Write a start of training as MMEngine lays it out: values of epochs, a copy of the config in both places."""

    def add(folder, name, values, seed=0, epochs=2, lr=0.001, ratio='area', resume=False, start='20260101_000000'):
        work_dir = tmp_path / folder
        vis_data = work_dir / start / 'vis_data'
        vis_data.mkdir(parents=True)
        text = CONFIG.format(seed=seed, epochs=epochs, lr=lr, ratio=ratio, resume=resume)
        (work_dir / f'{NAMES.get(name, name)}.py').write_text(text)
        (vis_data / 'config.py').write_text(text)
        records = []
        for epoch, value in values.items():
            records.append(
                {'lr': lr, 'loss': 1.0, 'accuracy/top1': -1, 'epoch': epoch, 'iter': epoch * 9, 'step': epoch * 9}
            )
            records.append({'accuracy/top1': value, 'calibration/ece': 100 - value, 'time': 0.1, 'step': epoch})
        (vis_data / 'scalars.json').write_text('\n'.join(map(json.dumps, records)) + '\n')
        return work_dir

    return add


def test_methods_by_models_with_mean_and_deviation_over_seeds_and_the_best_in_bold(tool, add, tmp_path, capsys):
    for seed, value in enumerate((70.0, 72.0, 71.0)):
        add(f'a/{seed}', 'mergemix', {1: 99.0, 2: value}, seed=seed)
        add(f'b/{seed}', 'cutmix', {1: 1.0, 2: value - 2}, seed=seed)
    add('c', 'tiny', {2: 60.0})
    tables = tool.main([str(tmp_path)])
    assert tables == {
        'cifar100': {
            'mergemix': {'deit-small, 200e': [70, 72, 71]},
            'cutmix': {'deit-small, 200e': [68, 70, 69], 'deit-tiny, 200e': [60]},
        }
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'cifar100: accuracy/top1, last validation, mean ± standard deviation over 3 runs'
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith('| ')]
    assert rows[0] == ['method', 'deit-small, 200e', 'deit-tiny, 200e']
    assert rows[2:] == [['mergemix', '**71.00** ± 1.00', '-'], ['cutmix', '69.00 ± 1.00', '**60.00** (n=1)']]


def test_runs_that_did_not_finish_or_repeat_a_seed_are_named_and_not_averaged(tool, add, tmp_path, capsys):
    add('done', 'mergemix', {2: 70.0})
    stopped = add('stopped', 'mergemix', {1: 10.0}, seed=1)
    again = add('twice', 'mergemix', {2: 20.0})
    other = add('other', 'mergemix', {}, seed=2)
    tables = tool.main([str(tmp_path)])
    assert tables['cifar100']['mergemix']['deit-small, 200e'] == [70]
    out = capsys.readouterr().out
    assert f'- {stopped}: not finished, validated at 1 of 2' in out
    assert f'- {other}: not finished, validated at 0 of 2' in out
    assert f'- {again}: the same config and seed as {tmp_path / "done"}' in out
    with pytest.raises(SystemExit, match='no finished run(.|\n)*has accuracy/top1, calibration/ece'):
        tool.main([str(tmp_path), '--metric', 'mAP'])
    with pytest.raises(SystemExit, match='WORK_DIR=.*nowhere: no training run'):
        tool.main([str(tmp_path / 'nowhere')])


@pytest.mark.parametrize(('resume', 'expected'), [(True, {1: 50.0, 2: 61.0}), (False, {2: 61.0})])
def test_a_resumed_run_goes_on_and_a_new_one_starts_again(load_tool, add, resume, expected):
    runs = load_tool('analysis_tools/_runs')
    add('run', 'mergemix', {1: 50.0, 2: 60.0})
    work_dir = add('run2', 'mergemix', {1: 50.0, 2: 60.0})
    add('run2', 'mergemix', {2: 61.0}, resume=resume, start='20260102_000000')
    assert runs.read_run(work_dir, 'accuracy/top1').values == expected


def test_runs_of_one_name_with_other_settings_are_rows_of_their_own(tool, add, tmp_path):
    for number, lr in enumerate((0.001, 0.01, 0.01)):
        add(str(number), 'mergemix', {2: 70.0 + number}, seed=number, lr=lr)
    rows = tool.main([str(tmp_path)])['cifar100']
    assert {name: row['deit-small, 200e'] for name, row in rows.items()} == {
        'mergemix (optim_wrapper.optimizer.lr=0.001)': [70],
        'mergemix (optim_wrapper.optimizer.lr=0.01)': [71, 72],
    }


def test_which_validation_counts(tool, add, tmp_path):
    values = {epoch: float(epoch) if epoch != 7 else 90.0 for epoch in range(1, 21)}
    add('a', 'cutmix', values, epochs=20)

    def score(*options):
        return tool.main([str(tmp_path), *options])['cifar100']['cutmix']['deit-small, 200e'][0]

    assert score() == 20 and score('--epoch', 'best') == 90
    assert score('--epoch', 'median') == statistics.median(range(11, 21))
    assert score('--metric', 'calibration/ece', '--epoch', 'best', '--lower-is-better') == 10


def test_the_table_as_latex_and_the_figure(tool, add, tmp_path):
    from PIL import Image

    for seed, value in enumerate((70.0, 72.0)):
        add(f'a{seed}', 'mergemix', {2: value}, seed=seed)
    add('plain', 'my_own', {2: 99.0})
    files = [tmp_path / f'out/table{suffix}' for suffix in ('.tex', '.png', '.md')]
    tool.main([str(tmp_path), '-o', *map(str, files), '--digits', '1'])
    latex = files[0].read_text()
    assert r'mergemix & \textbf{71.0} $\pm$ 1.4 \\' in latex and r'my\_own & \textbf{99.0}' in latex
    assert latex.count(r'\begin{tabular}{lr}') == 2 and '**71.0** ± 1.4' in files[2].read_text()
    assert Image.open(files[1]).width > 600  # Two panels.
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path), '-o', 'table.pdf'])


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        (
            'vit-large_1xb100-mergemix-released-coslr-200e_cifar100',
            ('cifar100', 'mergemix-released', 'vit-large, 200e'),
        ),
        ('deit-small_4xb256-mergemix-coslr-300e-fsdp_in1k', ('in1k', 'mergemix-fsdp', 'deit-small, 300e')),
        ('tome-deit-small_4xb256_in1k', ('in1k', 'none', 'tome-deit-small')),
        ('my_config', ('', 'my_config', '')),
    ],
)
def test_a_config_name_says_model_method_and_data(tool, name, expected):
    cell = tool.place(name)
    assert (cell.data, cell.method, cell.model) == expected
