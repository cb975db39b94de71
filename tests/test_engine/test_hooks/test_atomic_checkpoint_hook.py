"""Checkpoints are whole or not there, only own ones are deleted, and a resumed run gives the numbers of a whole one."""

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from fault_injection import checkpoints, differences, run
from mmengine._strategy import SingleDeviceStrategy
from mmengine.hooks import Hook
from mmengine.registry import STRATEGIES
from mmengine.runner import FlexibleRunner
from tiny_runs import DropoutModel, GreedyMetric, Kill, build, train

from mergemix_mm.engine.hooks import AtomicCheckpointHook, StepSeedHook
from mergemix_mm.engine.launch.resuming import choose_checkpoint

HOOK = dict(type='AtomicCheckpointHook')


class OutputMetric(GreedyMetric):
    """A score that goes up and down from one epoch to the next."""

    def process(self, data_batch, data_samples):
        super().process(data_batch, data_samples)
        self.results[-1] = float(data_samples[0].mean())

    def compute_metrics(self, results):
        mean = sum(results) / len(results)
        return dict(output=mean, acc=int(abs(mean) * 1e6) % 97)


@STRATEGIES.register_module()
class FolderStrategy(SingleDeviceStrategy):
    """Writes a folder, as FSDP does with one file per process."""

    def save_checkpoint(self, filename, **kwargs):
        os.makedirs(filename)
        super().save_checkpoint(os.path.join(filename, 'rank0.pth'), **kwargs)

    def load_checkpoint(self, filename, **kwargs):
        return super().load_checkpoint(os.path.join(filename, 'rank0.pth'), **kwargs)


def make(folder, resume=False, choose=True, **kwargs):
    kwargs['checkpoint'] = {**HOOK, **kwargs.pop('checkpoint', {})}
    kwargs.setdefault('hooks', [StepSeedHook()])
    runner = build(folder, resume=resume, **kwargs)
    if runner._val_evaluator is not None:
        runner._val_evaluator = [OutputMetric()]
    if choose:
        choose_checkpoint(runner)
    return runner


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir() if path.name.split('_')[0] in ('epoch', 'iter', 'best'))


EPOCHS = dict(checkpoint=dict(max_keep_ckpts=1, save_best=['acc', 'output'], rule='greater'))
ITERATIONS = dict(
    train_cfg=dict(by_epoch=False, max_iters=9, val_interval=2),
    sampler=dict(type='InfiniteSampler'),
    checkpoint=dict(by_epoch=False, interval=2, max_keep_ckpts=2, save_best='acc', rule='greater'),
    optim=dict(accumulative_counts=3),
)
FOLDERS = dict(
    runner=FlexibleRunner, strategy=dict(type='FolderStrategy'), validate=False, checkpoint=dict(max_keep_ckpts=1)
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='forks')
@pytest.mark.parametrize('options', [EPOCHS, ITERATIONS, FOLDERS], ids=['epochs', 'iterations', 'folders'])
def test_a_kill_at_any_step_of_a_save_leaves_a_checkpoint_that_gives_the_same_run(tmp_path, options):
    def build_runner(folder, resume):
        return make(folder, resume, **options)

    status, steps = run(build_runner, tmp_path / 'whole')
    assert status == 0 and len(steps) > 12
    first = next(number for number, name in enumerate(steps, 1) if 'last_checkpoint' in name and 'rename' in name)
    # Every step after the first save; the cheap way through the middle of a long run.
    for at in range(first + 1, len(steps) + 1, 2 if options is FOLDERS else 7):
        folder = tmp_path / f'killed_{at}'
        assert run(build_runner, folder, at=at)[0] == -9
        assert run(build_runner, folder, resume=True)[0] == 0, steps[at - 1]
        if options is FOLDERS:
            assert names(folder) == ['epoch_3.pth'] and not [path for path in folder.iterdir() if path.name[0] == '.']
            found, wanted = (
                torch.load(one / 'epoch_3.pth' / 'rank0.pth', weights_only=False)['state_dict']
                for one in (folder, tmp_path / 'whole')
            )
            assert all(torch.equal(found[key], value) for key, value in wanted.items())
        else:
            assert differences(folder, tmp_path / 'whole') == [], steps[at - 1]


def test_old_checkpoints_go_after_the_new_one_is_there(tmp_path, monkeypatch):
    seen = []
    write = AtomicCheckpointHook._write

    def watch(self, runner, name, *args, **kwargs):
        before = names(tmp_path)
        write(self, runner, name, *args, **kwargs)
        seen.append((before, names(tmp_path)))

    monkeypatch.setattr(AtomicCheckpointHook, '_write', watch)
    train(make(tmp_path, checkpoint=dict(max_keep_ckpts=1), validate=False))
    assert seen == [([], ['epoch_1.pth'])] + [
        ([f'epoch_{i}.pth'], [f'epoch_{i}.pth', f'epoch_{i + 1}.pth']) for i in (1, 2)
    ]
    assert names(tmp_path) == ['epoch_3.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_3.pth')


def test_a_moved_work_directory_resumes_from_its_own_files(tmp_path):
    options = dict(checkpoint=dict(save_best='acc', rule='greater', max_keep_ckpts=2))
    whole = train(make(tmp_path / 'whole', **options))
    train(make(tmp_path / 'first', hooks=[StepSeedHook(), Kill(9)], **options))
    # A copy, with the original still there, whose files are nobody's business any more.
    shutil.copytree(tmp_path / 'first', tmp_path / 'second')
    before = {path.name: path.read_bytes() for path in (tmp_path / 'first').glob('*.pth')}
    resumed = make(tmp_path / 'second', resume=True, **options)
    assert resumed._load_from == str(tmp_path / 'second' / 'epoch_2.pth')
    assert torch.equal(train(resumed), whole)
    assert names(tmp_path / 'second') == names(tmp_path / 'whole')
    assert {path.name: path.read_bytes() for path in (tmp_path / 'first').glob('*.pth')} == before


def test_the_best_checkpoint_of_another_run_stays(tmp_path):
    options = dict(checkpoint=dict(save_best='acc', rule='greater', max_keep_ckpts=1))
    train(make(tmp_path / 'a', hooks=[StepSeedHook(), Kill(9)], **options))
    before = names(tmp_path / 'a')
    last = next(name for name in before if name.startswith('epoch'))
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / before[0]).write_bytes(b'of an older run')
    (tmp_path / 'b' / 'epoch_1.pth').write_bytes(b'of an older run')
    train(make(tmp_path / 'b', resume=True, load_from=str(tmp_path / 'a' / last), **options))
    assert names(tmp_path / 'a') == before
    assert (tmp_path / 'b' / 'epoch_1.pth').exists() and (tmp_path / 'b' / before[0]).exists()


HOSTILE = [
    '/victim.pth',
    '../victim.pth',
    'train.log',
    'last_checkpoint',
    'best_acc_epoch_9.pth',
    '..',
    '',
    7,
    ['x'],
    '\0',
]


@pytest.mark.parametrize('value', HOSTILE, ids=str)
def test_a_checkpoint_cannot_have_other_files_deleted(tmp_path, value):
    folder = tmp_path / 'run'
    options = dict(checkpoint=dict(save_best='acc', rule='greater', max_keep_ckpts=2))
    train(make(folder, hooks=[StepSeedHook(), Kill(9)], **options))
    victims = [tmp_path / 'victim.pth', folder / 'train.log', folder / 'best_other_epoch_9.pth']
    for victim in victims:
        victim.write_text('precious')
    (folder / 'best_acc_epoch_9.pth').symlink_to(tmp_path / 'victim.pth')
    named = str(tmp_path) + value if value == '/victim.pth' else value
    path = folder / 'epoch_2.pth'
    content = torch.load(path, weights_only=False)
    info = content['message_hub']['runtime_info']
    info.update(best_ckpt=named, best_score=-1, keep_ckpt_ids=[named, '../../x', -3, True, 1, 2], last_ckpt=named)
    info['superseded_ckpts'] = [named, str(victims[2])]
    resumed = content['message_hub']['resumed_keys']
    resumed.update(dict.fromkeys(('best_ckpt', 'best_score', 'keep_ckpt_ids', 'last_ckpt', 'superseded_ckpts'), True))
    torch.save(content, path)
    runner = make(folder, resume=True, **options)
    train(runner)
    assert runner.iter == 12
    assert all(victim.read_text() == 'precious' for victim in victims[:2])
    assert (folder / 'best_acc_epoch_9.pth').is_symlink()
    assert (folder / 'last_checkpoint').exists() and (folder / 'epoch_3.pth').exists()


@pytest.mark.parametrize('by_epoch', [True, False])
def test_gradients_between_two_updates_are_not_lost(tmp_path, by_epoch):
    options = dict(optim=dict(accumulative_counts=3), validate=False)  # Four iterations are an epoch.
    if not by_epoch:
        options.update(
            train_cfg=dict(by_epoch=False, max_iters=12),
            sampler=dict(type='InfiniteSampler'),
            checkpoint=dict(by_epoch=False, interval=4),
        )
    whole = train(make(tmp_path / 'whole', **options))
    for kill in (5, 7, 10):
        folder = tmp_path / str(kill)
        train(make(folder, hooks=[StepSeedHook(), Kill(kill)], **options))
        assert torch.equal(train(make(folder, resume=True, **options)), whole)
    if not by_epoch:  # Due at 4, 8 and 12.
        assert names(tmp_path / 'whole') == ['iter_12.pth', 'iter_6.pth', 'iter_9.pth']


PLATEAU = dict(type='ReduceOnPlateauParamScheduler')


@pytest.mark.slow
@pytest.mark.parametrize(
    'options',
    [
        dict(optim=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9), accumulative_counts=2)),
        dict(hooks=lambda: [StepSeedHook(), dict(type='EMAHook', momentum=0.1)]),
        dict(param_scheduler=dict(PLATEAU, param_name='lr', monitor='acc', rule='greater', patience=0)),
        dict(runner=FlexibleRunner, checkpoint=dict(save_best='acc', rule='greater')),
        dict(workers=2, checkpoint=dict(save_best='acc', rule='greater')),
    ],
    ids=['momentum', 'ema', 'plateau', 'flexible', 'workers'],
)  # fmt: skip
def test_a_resumed_run_equals_a_whole_one(tmp_path, options):
    options = dict(options)
    hooks = options.pop('hooks', lambda: [StepSeedHook()])
    whole = train(make(tmp_path / 'whole', hooks=hooks(), **options))
    for kill in (4, 8, 10):
        folder = tmp_path / str(kill)
        train(make(folder, hooks=[*hooks(), Kill(kill)], **options))
        assert torch.equal(train(make(folder, hooks=hooks(), resume=True, **options)), whole)
        found, wanted = checkpoints(folder), checkpoints(tmp_path / 'whole')
        assert found.keys() == wanted.keys()
        for name in wanted.keys() - {'last_checkpoint'}:
            assert all(torch.equal(found[name][key], value) for key, value in wanted[name].items())


@pytest.mark.parametrize('processes', [1, 2])
def test_a_run_that_resumes_with_other_data_is_warned_of(tmp_path, monkeypatch, processes):
    train(make(tmp_path, hooks=[StepSeedHook(), Kill(5)]))
    runner, warned = make(tmp_path, resume=True), []
    monkeypatch.setattr('mergemix_mm.engine.hooks.atomic_checkpoint_hook.get_world_size', lambda: processes)
    monkeypatch.setattr(runner.logger, 'warning', warned.append)
    train(runner)
    size = runner.train_dataloader.batch_size
    said = [text for text in warned if 'samples over all processes' in text]
    assert [f'had {size} samples' in text and f'has {2 * size} now' in text for text in said] == [True] * (
        processes - 1
    )


def test_a_validation_that_was_due_when_the_run_was_killed_comes_first(tmp_path):
    class KillBeforeValidation(Hook):
        def before_val(self, runner):
            if runner.epoch == 2:
                raise KeyboardInterrupt

    options = dict(checkpoint=dict(save_best='acc', rule='greater', max_keep_ckpts=2))
    train(make(tmp_path / 'whole', **options))
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / 'killed', hooks=[StepSeedHook(), KillBeforeValidation()], **options).train()
    train(make(tmp_path / 'killed', resume=True, **options))
    assert names(tmp_path / 'killed') == names(tmp_path / 'whole')


def test_a_validation_that_comes_again_gives_the_same_numbers(tmp_path):
    scores = {}

    class Log(Hook):
        def after_val_epoch(self, runner, metrics=None):
            scores.setdefault(runner.epoch, []).append(metrics['output'])

    # The second epoch is not better, so its checkpoint does not know that it was validated.
    options = dict(optim=dict(accumulative_counts=2), checkpoint=dict(save_best='output', rule='less'))
    for resume, hooks in ((False, [Kill(9)]), (True, [])):
        train(make(tmp_path, resume, hooks=[StepSeedHook(), Log(), *hooks], **options))
    assert [len(found) for found in scores.values()] == [1, 2, 1]
    assert scores[2][0] == scores[2][1] > scores[1][0]


def test_weights_that_became_nan_are_not_saved(tmp_path):
    class Break(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 5:
                runner.model.net[0].weight.data[0, 0] = float('nan')

    runner = make(tmp_path, hooks=[StepSeedHook(), Break()], validate=False, checkpoint=dict(max_keep_ckpts=1))
    with pytest.raises(FloatingPointError, match=r'net\.0\.weight.*The last good one is .*epoch_1\.pth'):
        runner.train()
    assert names(tmp_path) == ['epoch_1.pth']
    assert not any(tensor.isnan().any() for tensor in checkpoints(tmp_path)['epoch_1.pth'].values())


def test_an_infinite_buffer_that_was_so_from_the_start_is_saved(tmp_path):
    model = DropoutModel()
    model.register_buffer('mask', torch.tensor([0.0, -torch.inf]))
    train(make(tmp_path, model=model, validate=False))
    assert names(tmp_path) == ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth']


def test_published_checkpoints_hold_the_named_keys(tmp_path):
    options = dict(
        published_keys=['meta', 'state_dict'], save_best='acc', rule='greater', filename_tmpl='e{}.pth', save_begin=1
    )
    train(make(tmp_path, checkpoint=options))
    published = [path for path in tmp_path.glob('*-*.pth')]
    assert len(published) == 2
    assert all(set(torch.load(path, weights_only=False)) == {'meta', 'state_dict'} for path in published)


def test_checkpoints_go_to_a_folder_of_their_own(tmp_path):
    options = dict(checkpoint=dict(out_dir=str(tmp_path / 'far'), max_keep_ckpts=1), validate=False)
    whole = train(make(tmp_path / 'run', hooks=[StepSeedHook(), Kill(9)], **options))
    assert names(tmp_path / 'far' / 'run') == ['epoch_2.pth']
    runner = make(tmp_path / 'run', resume=True, **options)
    assert runner._load_from == str(tmp_path / 'far' / 'run' / 'epoch_2.pth')
    train(runner)
    assert names(tmp_path / 'far' / 'run') == ['epoch_3.pth'] and len(whole)


def test_a_full_disk_stops_the_run_with_one_line_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    from mmengine.fileio import LocalBackend

    put, calls = LocalBackend.put, []

    def full(self, obj, filepath):
        calls.append(filepath)
        if len(calls) == 2:
            put(self, obj[:100], filepath)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(self, obj, filepath)

    monkeypatch.setattr(LocalBackend, 'put', full)
    runner = make(tmp_path, validate=False, checkpoint=dict(max_keep_ckpts=1))
    with pytest.raises(OSError) as raised:
        runner.train()
    message = raised.value.strerror
    assert raised.value.errno == errno.ENOSPC
    assert str(tmp_path / 'epoch_2.pth') in message and 'GB free' in message and '\n' not in message
    assert names(tmp_path) == ['epoch_1.pth']
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('.')]


@pytest.mark.parametrize('name', ['interval', 'max_keep_ckpts'])
@pytest.mark.parametrize('value', [float('nan'), float('inf'), True, '2', 1.5, None])
def test_numbers_with_which_nothing_would_be_saved_or_deleted_are_refused(name, value):
    with pytest.raises(ValueError, match=f'AtomicCheckpointHook: {name}={value!r} must be an integer'):
        AtomicCheckpointHook(**{name: value})
