"""Runs of MMEngine's Runner on a device: killed and resumed, moved to another device, fed from pinned memory."""

import copy
from types import SimpleNamespace

import mmengine.device.utils
import pytest
import tiny_runs
import torch
from mmengine.config import Config
from on_device import allow_amp, tensors
from test_datasets.test_collate import samples as conversations
from test_tools.conftest import CONFIG
from torch import nn
from torch.utils.data import DataLoader

from mergemix_mm.datasets import ConversationCollate
from mergemix_mm.engine import launch
from mergemix_mm.engine.hooks import NonFiniteLossHook
from mergemix_mm.models.vlms import VLMDataPreprocessor

AMP = dict(type='AmpOptimWrapper', loss_scale='dynamic')


class DrylessModel(tiny_runs.DropoutModel):
    """Draws nothing on its device: the same numbers everywhere."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1))


def run(folder, kill=None, resume=False, **kwargs):
    hooks = [tiny_runs.StepSeedHook()] + ([tiny_runs.Kill(kill)] if kill else [])
    return tiny_runs.train(tiny_runs.build(folder, hooks=hooks, resume=resume, **kwargs))


@pytest.mark.parametrize(('workers', 'precision'), [(0, 'float32'), (0, 'float16'), (0, 'bfloat16'), (2, 'float16')])
def test_a_killed_and_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    workers, precision, device, tmp_path, monkeypatch
):
    allow_amp(device, monkeypatch)
    optim = {} if precision == 'float32' else dict(AMP, dtype=precision)
    options = dict(workers=workers, optim=optim, checkpoint=dict(type='AtomicCheckpointHook'))
    whole = run(tmp_path / 'whole', **options)
    assert whole.device.type == device.type and whole.isfinite().all()
    run(tmp_path / 'killed', kill=6, **options)
    assert torch.equal(run(tmp_path / 'killed', resume=True, **options), whole)


def test_gradients_that_wait_for_an_update_survive_a_kill(device, tmp_path, monkeypatch):
    allow_amp(device, monkeypatch)
    options = dict(
        optim=dict(AMP, accumulative_counts=3),
        checkpoint=dict(type='AtomicCheckpointHook', by_epoch=False, interval=1),
        train_cfg=dict(by_epoch=False, max_iters=9, val_interval=100),
        sampler=dict(type='InfiniteSampler'),
    )
    whole = run(tmp_path / 'whole', **options)
    run(tmp_path / 'killed', kill=5, **options)
    assert torch.equal(run(tmp_path / 'killed', resume=True, **options), whole)


def test_a_checkpoint_of_the_device_resumes_on_the_cpu_to_the_same_numbers(device, tmp_path, monkeypatch):
    allow_amp(device, monkeypatch)
    options = dict(checkpoint=dict(type='AtomicCheckpointHook'))
    whole = run(tmp_path / 'whole', model=DrylessModel(), **options)
    run(tmp_path / 'killed', kill=6, model=DrylessModel(), **options)
    with monkeypatch.context() as patch:
        patch.setattr(mmengine.device.utils, 'DEVICE', 'cpu')
        resumed = run(tmp_path / 'killed', resume=True, model=DrylessModel(), **options)
    assert resumed.device.type == 'cpu'
    torch.testing.assert_close(resumed, whole.cpu(), atol=1e-5, rtol=1e-5)
    back = run(tmp_path / 'killed', resume=True, model=DrylessModel(), **options)  # It has ended already.
    assert back.device.type == device.type and torch.equal(back.cpu(), resumed)


def classifier_run(folder, **options):
    torch.manual_seed(0)
    cfg = Config.fromstring(CONFIG, '.py')
    cfg.merge_from_dict(dict(default_scope='mmpretrain', work_dir=str(folder), launcher='none') | options)
    launch.set_loader_defaults(cfg, 'train', 'val')
    return launch.build_runner(cfg)


def test_tools_train_a_classifier_with_amp_and_resume(device, tmp_path, monkeypatch):
    """As tools/train.py --amp does, with workers and pinned memory; the weights of the second epoch."""
    allow_amp(device, monkeypatch)
    options = {
        'optim_wrapper.type': 'AmpOptimWrapper',
        'optim_wrapper.loss_scale': 'dynamic',
        'train_dataloader.num_workers': 2,
        'randomness.deterministic': True,
    }
    before = torch.are_deterministic_algorithms_enabled()
    try:
        weights = []
        for folder, epochs in (('whole', (2,)), ('parts', (1, 2))):
            for epoch in epochs:
                extra = {
                    'train_cfg.max_epochs': epoch,
                    'resume': epoch != epochs[0],
                    'experiment_name': f'{folder}{epoch}',
                }
                runner = classifier_run(tmp_path / folder, **options, **extra)
                assert runner.cfg.train_dataloader.get('pin_memory', False) == (device.type == 'cuda')
                model = runner.train()
                runner.train_dataloader._iterator = None
            weights.append(copy.deepcopy(model.state_dict()))
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(one.device.type == device.type for one in weights[0].values())
    for name, one in weights[0].items():
        assert torch.equal(weights[1][name], one), name


def test_conversations_come_out_of_pinned_memory(device):
    given = conversations('llava')
    loader = DataLoader(
        given, batch_size=3, collate_fn=ConversationCollate('right'), pin_memory=device.type == 'cuda', num_workers=1
    )
    (data,) = loader
    assert data['inputs']['input_ids'].is_pinned() == (device.type == 'cuda')
    data['inputs']['rejected'] = dict(input_ids=data['inputs']['input_ids'])
    found = VLMDataPreprocessor(non_blocking=True).to(device)(data)
    assert {one.device.type for _, one in tensors(found['inputs'])} == {device.type}
    expected = ConversationCollate('right')(given)
    assert torch.equal(found['inputs']['pixel_values'].cpu(), expected['inputs']['pixel_values'])
    assert [one.source for one in found['data_samples']] == [one.source for one in expected['data_samples']]


def test_losses_of_a_device_stop_a_run_whose_loss_is_nan(device, tmp_path):
    hook = NonFiniteLossHook(patience=2)
    runner = SimpleNamespace(iter=0, model=nn.Linear(2, 2).to(device), message_hub=SimpleNamespace(runtime_info={}))
    for value in (1.0, torch.nan, torch.nan):
        outputs = dict(loss=torch.tensor(value, device=device), loss_part=0.5, loss_of_cpu=torch.tensor(1.0), rate=1)
        hook.after_train_iter(runner, 0, None, outputs)
        runner.iter += 1
    with pytest.raises(FloatingPointError, match=r'the loss \(loss\) is NaN'):
        hook.after_train_iter(runner, 0, None, outputs)
