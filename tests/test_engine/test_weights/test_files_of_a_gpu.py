"""Files that were written from a CUDA device are read on a machine that has none."""

import pytest
import tiny_runs
import torch
from mmengine.runner import load_checkpoint

from mergemix_mm.engine.weights import StoredWeights, mix_files, read_state_dict
from mergemix_mm.functional import mix_weights
from mergemix_mm.utils.safe_load import guarded_mmengine, safe_load


@pytest.fixture
def gpu(monkeypatch):
    """What torch.save writes now claims to come from a GPU."""

    def switch(on):
        monkeypatch.undo()
        if on:
            monkeypatch.setattr(torch.serialization, 'location_tag', lambda storage: 'cuda:99')

    switch(True)
    return switch


def state(seed):
    torch.manual_seed(seed)
    return dict(weight=torch.randn(4, 5), bias=torch.randn(5).half(), steps=torch.tensor(3))


def test_weights_are_read_and_mixed(gpu, tmp_path):
    states = [state(0), state(1)]
    for name, one in zip(('real', 'syn'), states):
        torch.save(dict(meta={}, state_dict=one), tmp_path / f'{name}.pth')
    gpu(False)
    with pytest.raises(RuntimeError, match='CUDA device'):  # That it claims so.
        torch.load(tmp_path / 'real.pth', weights_only=True)
    for found in (read_state_dict(tmp_path / 'real.pth'), safe_load(tmp_path / 'real.pth', 'cpu')['state_dict']):
        assert all(torch.equal(found[name], one) for name, one in states[0].items())
    mix_files(StoredWeights(tmp_path / 'real.pth'), StoredWeights(tmp_path / 'syn.pth'), tmp_path / 'out.pth', 0.3)
    mixed = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    assert all(torch.equal(mixed[name], one) for name, one in mix_weights(*states, 0.3).items())


def test_a_run_goes_on_from_them(gpu, tmp_path):
    gpu(False)
    options = dict(checkpoint=dict(type='AtomicCheckpointHook'), validate=False)
    whole = tiny_runs.train(tiny_runs.build(tmp_path / 'whole', **options))
    gpu(True)
    hooks = [tiny_runs.StepSeedHook(), tiny_runs.Kill(6)]
    tiny_runs.train(tiny_runs.build(tmp_path / 'killed', hooks=hooks, **options))
    gpu(False)
    with guarded_mmengine():
        resumed = tiny_runs.train(tiny_runs.build(tmp_path / 'killed', resume=True, **options))
        load_checkpoint(tiny_runs.DropoutModel(), str(tmp_path / 'killed' / 'epoch_3.pth'))
    assert torch.equal(resumed, whole)
