"""Tests of starting a training from mixed weights, with a Runner, resumed and wrapped, and what is refused."""

import logging
import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mergemix_mm.engine.hooks import WeightMixHook
from mergemix_mm.functional import mix_weights


class Toy(BaseModel):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 4, bias=False)
        self.tied = self.head.weight

    def forward(self, inputs, mode):
        return dict(loss=self.head(self.body(torch.stack(inputs))).square().mean())


@pytest.fixture
def files(tmp_path):
    """Checkpoints of two models."""
    states = []
    for seed, name in enumerate(('real', 'syn')):
        states.append(Toy(seed).state_dict())
        torch.save(dict(state_dict=states[-1]), tmp_path / f'{name}.pth')
    return states


def hook(folder, **options):
    options = dict(real=str(folder / 'real.pth'), synthetic=str(folder / 'syn.pth'), **options)
    return WeightMixHook(**options)


def start(hook, model, iteration=0):
    runner = SimpleNamespace(iter=iteration, model=model, logger=logging.getLogger('mix'))
    hook.before_train(runner)
    return model


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def run(folder, epochs, hooks, lr=0.1, resume=False):
    runner = Runner(
        model=Toy(seed=9),
        work_dir=str(folder / 'work'),
        train_dataloader=dict(
            dataset=[torch.ones(3) * i for i in range(4)],
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=2,
            collate_fn=lambda samples: dict(inputs=samples),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr)),
        custom_hooks=hooks,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        experiment_name=f'mix-{os.urandom(4).hex()}',
        resume=resume,
    )
    runner.train()
    return runner.model


def test_training_starts_from_the_mix(files, tmp_path):
    options = dict(real=str(tmp_path / 'real.pth'), synthetic=str(tmp_path / 'syn.pth'), beta=0.3)
    model = run(tmp_path, 1, [dict(type='WeightMixHook', **options)], lr=0.0)
    expected = mix_weights(*files, 0.3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    log = next((tmp_path / 'work').rglob('*.log')).read_text()
    assert f'mixed 8 tensors of {tmp_path}/real.pth (weight 0.3) and {tmp_path}/syn.pth into the model; 1 are' in log


def test_a_resumed_run_keeps_its_weights(files, tmp_path):
    options = dict(type='WeightMixHook', real=str(tmp_path / 'real.pth'), synthetic=str(tmp_path / 'syn.pth'))
    whole = run(tmp_path / 'whole', 2, [options]).state_dict()
    run(tmp_path / 'resumed', 1, [options])
    resumed = run(tmp_path / 'resumed', 2, [options], resume=True).state_dict()
    assert same(resumed, whole)
    log = sorted((tmp_path / 'resumed').rglob('*.log'))[-1].read_text()
    assert 'resumed at iteration 2, so no weights are mixed' in log


def test_a_run_that_finds_nothing_to_resume_from_is_mixed(files, tmp_path):
    options = dict(type='WeightMixHook', real=str(tmp_path / 'real.pth'), synthetic=str(tmp_path / 'syn.pth'))
    model = run(tmp_path, 1, [options], lr=0.0, resume=True)
    assert torch.equal(model.head.weight, mix_weights(*files, 0.5)['head.weight'])


def test_a_wrapped_model_is_mixed(files, tmp_path):
    model = start(hook(tmp_path), nn.DataParallel(Toy(9))).module
    assert same(model.state_dict(), mix_weights(*files, 0.5))


def test_include_and_exclude_choose_what_is_mixed(files, tmp_path):
    model = start(hook(tmp_path, include='body', exclude='bias'), Toy(9))
    expected = mix_weights(*files, 0.5, lambda name: 'body' in name and 'bias' not in name)
    assert same(model.state_dict(), expected)
    assert torch.equal(model.head.weight, files[0]['head.weight'])


def test_folders_of_a_language_model_go_into_their_module_and_tied_weights_may_be_missing(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    def llama(seed):
        torch.manual_seed(seed)
        sizes = dict(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))

    models = [llama(0), llama(1)]
    for model, name in zip(models, ('real', 'syn')):
        model.to(torch.bfloat16).save_pretrained(tmp_path / name, max_shard_size=1000)
    outer = nn.ModuleDict(dict(vision=nn.Linear(2, 2), language_model=llama(2)))
    vision = outer['vision'].weight.clone()
    start(WeightMixHook(str(tmp_path / 'real'), str(tmp_path / 'syn'), module='language_model'), outer)
    expected = mix_weights(*(model.state_dict() for model in models), 0.5)
    # The model keeps its own precision.
    assert same(outer['language_model'].state_dict(), {name: weight.float() for name, weight in expected.items()})
    assert torch.equal(outer['vision'].weight, vision)


def test_all_that_does_not_fit_is_named_at_once(files, tmp_path):
    other = dict(files[1], extra=torch.ones(1))
    other.pop('body.0.bias')
    torch.save(other, tmp_path / 'syn.pth')
    model = Toy(9)
    model.head, model.more = nn.Linear(4, 5, bias=False), nn.Linear(2, 2, bias=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        start(hook(tmp_path), model)
    lines = {line.strip() for line in str(caught.value).splitlines()}
    assert {
        'extra: only in synthetic',
        'body.0.bias: only in real',
        'more.weight: only in the model',
        'head.weight: [4, 4] in real, [5, 4] in the model',
    } <= lines
    assert 'WeightMixHook: the weights cannot be mixed (4 problems):' in lines
    assert same(model.state_dict(), before)


def test_files_and_options_that_cannot_be_used_are_refused(files, tmp_path):
    with pytest.raises(ValueError, match='WeightMixHook: beta=2'):
        hook(tmp_path, beta=2)
    with pytest.raises(ValueError, match=r"WeightMixHook: exclude='\*'"):
        hook(tmp_path, exclude='*')
    with pytest.raises(FileNotFoundError, match="WeightMixHook: synthetic='nothing.pth': there is no file"):
        start(WeightMixHook(str(tmp_path / 'real.pth'), 'nothing.pth'), Toy())
    with pytest.raises(AttributeError, match='decoder'):
        start(hook(tmp_path, module='decoder'), Toy())


def test_a_sharded_model_is_refused_with_the_way_out(files, tmp_path):
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match=r'sharded over processes.*tools/mix_weights.py'):
            start(hook(tmp_path), fully_shard(Toy(), mesh=init_device_mesh('cpu', (1,))))
    finally:
        dist.destroy_process_group()
