"""The tools and checkpoints of strangers: nothing in them is executed, and old and new ones of MMEngine resume."""

import json
import os
from argparse import Namespace

import pytest
import tiny_sphinx
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS, MODELS

from mergemix_mm.engine.hooks import PlainCheckpointHook

VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=16),
    img_size=28,
    patch_size=14,
    out_type='raw',
)


class Dangerous:
    def __reduce__(self):
        return os.mkdir, ('ran',)


@HOOKS.register_module()
class WatchLogs(Hook):
    """Keeps what the message hub holds when training begins."""

    seen = None

    def before_train(self, runner):
        buffer = runner.message_hub.log_scalars.get('train/loss')
        WatchLogs.seen = None if buffer is None else buffer.data[0].tolist()


@pytest.fixture
def evil(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(meta=dict(epoch=1, iter=4), state_dict={}, extra=Dangerous()), 'evil.pth')
    yield tmp_path / 'evil.pth'
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('scope', ['load_from', 'resume', 'init_cfg'])
def test_training_runs_nothing_of_a_checkpoint(config, evil, run_tool, scope):
    flags = ['--resume', evil] if scope == 'resume' else []
    if scope == 'load_from':
        config.write_text(config.read_text() + f'load_from = {str(evil)!r}\n')
    if scope == 'init_cfg':
        init = f"model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint={str(evil)!r})\n"
        config.write_text(config.read_text() + init)
    with pytest.raises(SystemExit, match=r'evil\.pth .*refers to .*mkdir.*--trust-checkpoint'):
        run_tool('train', config, '--work-dir', evil.parent / 'work', *flags)


def test_testing_runs_nothing_of_a_checkpoint(config, evil, run_tool):
    with pytest.raises(SystemExit, match=r'evil\.pth .*refers to .*mkdir.*--trust-checkpoint'):
        run_tool('test', config, evil, '--work-dir', evil.parent / 'work')


def test_browsing_runs_nothing_of_a_checkpoint(config, evil, load_tool):
    with pytest.raises(SystemExit, match=r'evil\.pth .*refers to .*mkdir.*--trust-checkpoint'):
        load_tool('visualization/browse_mix').main([str(config), '--checkpoint', str(evil), '--num-images', '2'])


def test_the_flag_trusts(config, tmp_path, run_tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(meta={}, state_dict={}, extra=Dangerous()), 'evil.pth')
    run_tool('test', config, tmp_path / 'evil.pth', '--work-dir', tmp_path / 'work', '--trust-checkpoint')
    assert (tmp_path / 'ran').is_dir()


@pytest.mark.parametrize('flexible', [False, True])
def test_checkpoints_are_plain_and_resume_with_their_logs(config, tmp_path, run_tool, monkeypatch, flexible):
    text = config.read_text() + "custom_hooks.append(dict(type='WatchLogs'))\n"
    config.write_text(text + ("strategy = dict(type='SingleDeviceStrategy')\n" if flexible else ''))
    run_tool('train', config, '--work-dir', tmp_path / 'new')
    saved = torch.load(tmp_path / 'new' / 'epoch_1.pth', weights_only=True)  # No class has to be allowed.
    assert len(saved['message_hub']['log_scalars']) >= 3
    # The same run by plain MMEngine: pickled buffers.
    with monkeypatch.context() as patch:
        patch.setattr(PlainCheckpointHook, 'before_save_checkpoint', lambda *_, **__: None)
        run_tool('train', config, '--work-dir', tmp_path / 'old')
    old = torch.load(tmp_path / 'old' / 'epoch_1.pth', weights_only=False)
    buffer = old['message_hub']['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer) and len(buffer.data[0]) == 4
    for name in ('new', 'old'):
        run_tool('train', config, '--work-dir', tmp_path / f'from-{name}', '--resume', tmp_path / name / 'epoch_1.pth')
        assert WatchLogs.seen == buffer.data[0].tolist(), name


def test_log_lines_show_control_characters(config, tmp_path, run_tool, capsys):
    path = tmp_path / 'a\x1b[2J.pth'
    torch.save(dict(meta={}, state_dict={}), path)
    run_tool('test', config, path, '--work-dir', tmp_path / 'work')
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert 'a\\x1b[2J.pth' in log and 'a\x1b[2J.pth' not in log


def test_chat_builds_nothing_that_a_folder_says(tmp_path, monkeypatch, load_tool):
    monkeypatch.chdir(tmp_path)
    backbone = dict(type='MultiBackbone', encoders=[dict(encoder=VIT)])
    MODELS.build(tiny_sphinx.sphinx_config(backbone=backbone)).save_pretrained('evil')
    tiny_sphinx.processor().save_pretrained(tmp_path / 'evil')
    content = json.loads((tmp_path / 'evil' / 'config.json').read_text())
    content['backbone'] = dict(type='os.system', command='mkdir ran')
    (tmp_path / 'evil' / 'config.json').write_text(json.dumps(content))
    ask = ['evil', '--question', 'What?', '--device', 'cpu', '--max-new-tokens', '1']
    with pytest.raises(SystemExit, match=r"config\.json: backbone\.type='os\.system'.*--trust-remote-code"):
        load_tool('chat').main(ask)
    assert not (tmp_path / 'ran').exists()
    with pytest.raises(Exception):  # A number is no backbone.
        load_tool('chat').main([*ask, '--trust-remote-code'])
    assert (tmp_path / 'ran').is_dir()


def test_a_converter_reads_old_pickles_with_the_flag(tmp_path, monkeypatch, load_tool):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={'vlm.a': torch.ones(1)}, args=Namespace(lr=1)), 'old.pth')
    tool = load_tool('model_converters/save_pretrained')
    with pytest.raises(SystemExit, match=r'old\.pth holds more .*argparse\.Namespace.*--trust-checkpoint'):
        tool.load_weights(tmp_path / 'old.pth')
    assert tool.load_weights(tmp_path / 'old.pth', trust=True) == {'a': torch.ones(1)}


def write_checkpoint(path, kind):
    if kind == 'folder':
        path.mkdir()
    elif kind != 'missing':
        content = dict(list=[torch.zeros(2)], number=3, weights=dict(state_dict=dict(x=torch.zeros(2))))[kind]
        torch.save(content, path)


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('missing', r'CHECKPOINT: there is no file .*found\.pth$'),
        ('folder', r'CHECKPOINT: there is no file .*found\.pth$'),
        ('list', r'found\.pth holds no weights by name, but: list$'),
        ('number', r'found\.pth holds no weights by name, but: int$'),
    ],
)
@pytest.mark.parametrize('way', ['test', 'load_from', 'init_cfg'])
def test_what_is_no_checkpoint_is_one_line(config, tmp_path, run_tool, kind, message, way):
    path = tmp_path / 'found.pth'
    write_checkpoint(path, kind)
    lines = dict(
        load_from=f'load_from = {str(path)!r}\n',
        init_cfg=f"model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint={str(path)!r})\n",
    )
    config.write_text(config.read_text() + lines.get(way, ''))
    tool = ['test', config, path] if way == 'test' else ['train', config]
    with pytest.raises(SystemExit, match=message) as error:
        run_tool(*tool, '--work-dir', tmp_path / 'work')
    assert '\n' not in str(error.value)


def test_weights_alone_cannot_be_resumed_from_and_the_error_names_load_from(config, tmp_path, run_tool):
    write_checkpoint(tmp_path / 'found.pth', 'weights')
    with pytest.raises(SystemExit, match=r'^--resume: .*found\.pth .*not the checkpoint of a training run.*load_from'):
        run_tool('train', config, '--work-dir', tmp_path / 'work', '--resume', tmp_path / 'found.pth')


@pytest.mark.parametrize('place', ['file', 'file/below', '/proc/none'])
def test_a_work_directory_that_cannot_be_made_is_one_line(config, tmp_path, run_tool, place):
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit, match=f'^cannot write .*{place}: .*; name another folder$'):
        run_tool('train', config, '--work-dir', tmp_path / place)
