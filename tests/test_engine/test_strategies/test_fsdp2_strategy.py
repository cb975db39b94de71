"""Runs with FSDP2Strategy on two gloo processes that share all scenarios, against DDP and one process.

What sharded models compute is in the distributed tests of tuners and of the classifier.
"""

import gc
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import rank_kills  # noqa: F401 - its hook
import torch
import torch.distributed as dist
from fault_injection import in_child
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import CheckpointLoader
from safetensors.torch import load_file
from torch import nn
from two_ranks import WORLD, results_of, sharded, whole

import mergemix_mm
from mergemix_mm.engine.hooks import SavePretrainedHook
from mergemix_mm.engine.launch import build_runner, safe_checkpoints
from mergemix_mm.engine.launch.resuming import _find_problem
from mergemix_mm.engine.strategies import FSDP2Strategy
from mergemix_mm.engine.weights import CheckpointError, StoredWeights, read_checkpoint, read_state_dict
from mergemix_mm.engine.weights.sharded_checkpoint import INDEX, ShardedCheckpoint
from mergemix_mm.models.precision import wanted_dtypes, weights_as_in_files
from mergemix_mm.models.vlms.hf.saving import whole_weights

pytestmark = pytest.mark.slow

CONFIG = f"""
_base_ = [
    {mergemix_mm.config_path('simpo/tiny-llava_1xb64-sft-coslr-300i_shapes.py')!r},
    {mergemix_mm.config_path('_base_/strategies/fsdp.py')!r},
]
model = dict(vlm=dict(gradient_checkpointing=True), generation=dict(max_new_tokens=6))
train_dataloader = dict(batch_size=2, sampler=dict(batch_size=2), dataset=dict(length=20))
val_dataloader = dict(batch_size=2, dataset=dict(length=8))
train_cfg = dict(max_iters=6, val_interval=6)
# The schedule begins at 0: the first steps would change nothing.
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, end=6)]
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=1))
log_level = 'ERROR'
"""


def config(folder, name, ranks=WORLD, strategy=True, **options):
    path = Path(folder, f'{name}-{ranks}-{os.getpid()}.py')
    path.write_text(CONFIG)
    cfg = Config.fromfile(path)
    cfg.work_dir, cfg.experiment_name = str(Path(folder, name)), f'{name}-{ranks}-{len(options)}'
    cfg.launcher = 'none' if ranks == 1 else 'pytorch'
    # The same batch over all ranks.
    cfg.train_dataloader.batch_size = cfg.train_dataloader.sampler.batch_size = 2 * WORLD // ranks
    if not strategy:
        cfg.pop('strategy'), cfg.pop('runner_type')
    cfg.merge_from_dict(options)
    return cfg


def train(cfg, **kill):
    """Train until the end, or until `KillRank` ends the process: all weights, and the last metrics."""
    if kill:
        cfg.custom_hooks.append(dict(type='KillRank', **kill))
    runner = build_runner(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars.items()
    metrics = {key: float(log.current()) for key, log in scalars if key.startswith('val/') and 'time' not in key}
    names = ((name.removeprefix('module.'), one) for name, one in runner.model.named_parameters())
    return {name: whole(one) for name, one in names}, metrics


def start(rank, folder, number):
    dist.init_process_group('gloo', init_method=f'file://{folder}/store{number}', rank=rank, world_size=WORLD)


def stop():
    gc.collect()  # Wrapped models refer to the process group.
    dist.destroy_process_group()


def worker(rank, folder):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), MASTER_ADDR='-', MASTER_PORT='0')
    found = dict(interrupted=interrupted(rank, folder))
    start(rank, folder, 1)
    found |= dict(ddp=train(config(folder, 'ddp', strategy=False)), fsdp=train(config(folder, 'fsdp')))
    found['accumulated'] = train(config(folder, 'sums', **ACCUMULATED))[0]
    found['accumulated ddp'] = train(config(folder, 'sums-ddp', strategy=False, **ACCUMULATED))[0]
    found['moved'] = train(config(folder, 'moved', resume=True))
    # From the checkpoint of DDP.
    loaded = config(folder, 'loaded', load_from=str(last_checkpoint(folder, 'ddp')), resume=True)
    found['loaded'] = train(loaded)[0]
    found['lora'] = lora(rank, folder)
    found['kept'] = kept(rank, folder)
    found['answers'] = answers(rank, folder)
    stop()
    torch.save(found, f'{folder}/rank{rank}.pth')


def interrupted(rank, folder):
    """Forked processes that are killed: one of two in its second save, and one that goes on alone, in its next step.

    How they ended, and what the first two left.
    """

    def two():
        start(rank, folder, 0)
        train(config(folder, 'moved'), save=2)

    statuses, left = [in_child(two)], []
    if rank == 0:
        left = sorted(path.name[:8] for path in Path(folder, 'moved').iterdir() if '.pth' in path.name)
        statuses.append(in_child(lambda: train(config(folder, 'moved', ranks=1, resume=True), step=5)))
    return dict(statuses=statuses, left=left)


class WatchAnswers(Hook):
    """Counts the tokens of answers, and how often the first layer of the language model ran."""

    def __init__(self):
        self.passes, self.lengths = 0, []

    def before_val(self, runner):
        layer = next(layer for name, layer in runner.model.named_modules() if name.endswith('language_model.layers.0'))
        layer.register_forward_pre_hook(self.count)

    def count(self, *_):
        self.passes += 1

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.lengths += [len(sample.pred_answer.split()) for sample in outputs]


def answers(rank, folder):
    """A validation in which all answers of one process end with their first token."""
    ends = dict(max_new_tokens=6, eos_token_id=list(range(64)) if rank else 63)
    runner = build_runner(config(folder, 'answers', **{'model.generation': ends}))
    hook = WatchAnswers()
    runner.register_hook(hook)
    runner.val()
    return dict(passes=hook.passes, lengths=hook.lengths)


ACCUMULATED = {'optim_wrapper.accumulative_counts': 3, 'val_cfg': None, 'val_dataloader': None, 'val_evaluator': None}


def last_checkpoint(folder, name):
    return Path(Path(folder, name, 'last_checkpoint').read_text())


def lora(rank, folder):
    """Adapters on the model of a folder in bfloat16: what is mapped, what trains, and what is saved."""
    vlm = dict(
        type='HFVisionLanguageModel',
        pretrained=f'{folder}/fsdp/pretrained',
        dtype='bfloat16',
        lora=dict(r=2),
        trainable=['projector', 'language_model'],
    )
    torch.manual_seed(0)
    optim = dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=dict(type='SGD', lr=0.1))
    model, _ = sharded(dict(type='VLMTuner', vlm=vlm), folder, optim)
    dtypes = {(one.requires_grad, str(one.dtype)) for one in model.parameters()}
    model.vlm.save_pretrained(f'{folder}/adapters')
    weights = {name: whole(one) for name, one in model.named_parameters() if one.requires_grad}
    return dict(dtypes=sorted(dtypes), weights=weights, buffers=dict(model.named_buffers()))


class Tied(nn.Module):
    """One weight with two names, and statistics that differ between the processes."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 3, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.norm(self.first(x)))

    def save_pretrained(self, folder):
        with whole_weights(self, folder) as weights:
            assert (weights is None) == (dist.get_rank() > 0)


def kept(rank, folder):
    """What a checkpoint keeps of such a model, and what a process says if only the main one cannot save it."""
    strategy = FSDP2Strategy(work_dir=f'{folder}/strategy', log_kwargs=dict(log_level='ERROR'))
    model = strategy.prepare(Tied())
    model.train()(torch.eye(3)[:2] * (rank + 1))
    strategy.save_checkpoint(f'{folder}/tied')
    taken = Path(folder, 'taken', 'notes.txt')
    taken.parent.mkdir(exist_ok=True)
    taken.write_text('of the user')
    runner = SimpleNamespace(model=SimpleNamespace(vlm=model), work_dir=folder)
    with pytest.raises(OSError) as refused:
        SavePretrainedHook(out_dir=str(taken.parent))._save(runner)
    model.save_pretrained(f'{folder}/new/place')
    return dict(mean=model.norm.running_mean.clone(), var=model.norm.running_var.clone(), refused=str(refused.value))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('two_ranks')


@pytest.fixture(scope='module')
def results(folder):
    return results_of(__file__, folder)


@pytest.fixture(scope='module')
def one_process(results, folder):
    return train(config(folder, 'one', ranks=1, strategy=False))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(
            found[name], weight, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f'{name}: {text}'
        )


def test_training_equals_ddp_and_one_process(results, one_process):
    weights, metrics = one_process
    start = MODELS.build(Config.fromfile(mergemix_mm.config_path('_base_/models/tiny-llava_shapes.py')).model)
    assert any((weights[name] - one).abs().max() > 1e-3 for name, one in start.named_parameters())
    for result in results:
        for kind in ('ddp', 'fsdp'):
            assert_same(result[kind][0], weights)
            assert result[kind][1] == pytest.approx(metrics, rel=1e-4)


def test_gradients_accumulate_as_under_ddp(results):
    for result in results:
        assert_same(result['accumulated'], result['accumulated ddp'])


def test_a_killed_run_resumes_on_another_number_of_processes(results, one_process, folder):
    """One of two is killed while it writes its part; the other ends with an error, instead of waiting."""
    first, second = (result['interrupted'] for result in results)
    assert first['statuses'] == [-9, -9] and second['statuses'] == [1]
    assert [name for name in first['left'] if name.startswith('iter')] == ['iter_2.p']
    assert any(name.startswith('.iter_4') for name in first['left'])
    for result in results:
        assert_same(result['moved'][0], one_process[0])
    assert not [path for path in (folder / 'moved').iterdir() if path.name.startswith('.')]


def test_answers_of_different_lengths_do_not_part_the_processes(results):
    long, short = (result['answers'] for result in results)
    assert set(short['lengths']) <= {0, 1} and max(long['lengths']) > 1
    # Of two batches; the second process would have stopped after one pass each, and the first one waited forever.
    assert long['passes'] == short['passes'] == 2 * 6


def test_an_unsharded_run_is_continued_in_shards(results):
    for result in results:
        assert_same(result['loaded'], result['ddp'][0])


def test_one_process_without_a_launcher_trains_with_its_shards_on_the_cpu(one_process, folder):
    try:
        weights, metrics = train(config(folder, 'alone', ranks=1, **{'strategy.cpu_offload': True}))
    finally:
        dist.destroy_process_group()
    assert_same(weights, one_process[0])
    assert metrics == pytest.approx(one_process[1], rel=1e-4)


def test_a_checkpoint_is_read_by_one_process_and_damage_is_found(results, folder):
    last = last_checkpoint(folder, 'fsdp')
    assert last.is_dir() and {path.name for path in last.parent.glob('*.pth')} == {'iter_6.pth'}
    assert_same(read_state_dict(last), results[0]['fsdp'][0])
    assert read_checkpoint(last)['meta']['iter'] == 6
    with pytest.raises(ValueError, match='is the checkpoint of a sharded run.* SavePretrainedHook wrote'):
        StoredWeights(last)
    with safe_checkpoints():  # As a run without shards resumes from it.
        found, ddp = (CheckpointLoader.load_checkpoint(str(one)) for one in (last, last_checkpoint(folder, 'ddp')))
    assert found.keys() == ddp.keys() and found['optimizer'].keys() == ddp['optimizer'].keys()
    assert found['optimizer']['param_groups'] == ddp['optimizer']['param_groups']
    assert found['optimizer']['state'].keys() == ddp['optimizer']['state'].keys()
    for index, values in ddp['optimizer']['state'].items():
        assert_same(found['optimizer']['state'][index], values)
    assert _find_problem(last) is None
    part = max(last.glob('*.distcp'), key=lambda path: path.stat().st_size)
    part.write_bytes(part.read_bytes()[:-100])
    assert 'its end is missing' in _find_problem(last)
    part.unlink()
    assert _find_problem(last) == f'{part.name} is missing'
    (last / INDEX).unlink()
    assert _find_problem(last) == f'{INDEX} is missing'


def test_the_model_is_left_in_the_format_of_transformers(results, folder):
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder / 'fsdp' / 'pretrained')
    assert_same({f'vlm.model.{name}': one.detach() for name, one in model.named_parameters()}, results[0]['fsdp'][0])
    assert not [path for path in (folder / 'fsdp').iterdir() if path.name.startswith('.')]


def test_adapters_train_in_float32_beside_low_precision_and_are_saved_alone(results, folder):
    for result in results:
        assert result['lora']['dtypes'] == [(False, 'torch.bfloat16'), (True, 'torch.float32')]
    saved, trained = load_file(folder / 'adapters' / 'adapter_model.safetensors'), results[0]['lora']['weights']
    assert len(saved) == len(trained) > 8
    for name, value in trained.items():
        name = name.removeprefix('vlm.model.').replace('.modules_to_save', '').replace('.default', '')
        assert torch.equal(saved[name], value), name


def test_a_checkpoint_has_all_names_of_a_weight_and_the_statistics_of_the_main_process(results, folder):
    main, other = (result['kept'] for result in results)
    assert not torch.equal(main['mean'], other['mean']) and not torch.equal(main['var'], other['var'])
    model, weights = Tied(), read_state_dict(folder / 'tied')
    model.load_state_dict(weights)
    assert torch.equal(weights['last.weight'], weights['first.weight'])
    assert torch.equal(weights['norm.running_mean'], main['mean']) and torch.equal(
        weights['norm.running_var'], main['var']
    )


def test_no_process_waits_for_a_main_process_that_cannot_save_the_folder(results):
    main, other = (result['kept']['refused'] for result in results)
    assert 'holds other files than a model (notes.txt' in main and main in other


def test_buffers_that_no_file_holds_are_those_of_the_unsharded_model(results, folder):
    vlm = dict(type='HFVisionLanguageModel', pretrained=str(folder / 'fsdp' / 'pretrained'), lora=dict(r=2))
    buffers = dict(MODELS.build(dict(type='VLMTuner', vlm=vlm)).named_buffers())
    assert any(name.endswith('inv_freq') for name in buffers)
    for result in results:
        assert_same(result['lora']['buffers'], buffers)


def test_weights_stay_in_their_files_until_they_are_sharded(results, folder):
    vlm = dict(type='HFVisionLanguageModel', pretrained=str(folder / 'fsdp' / 'pretrained'), dtype='bfloat16')
    with weights_as_in_files():
        tuner = MODELS.build(dict(type='VLMTuner', vlm=vlm))
    assert {one.dtype for one in tuner.parameters()} == {torch.float32} and tuner.vlm.loaded_dtype == torch.bfloat16
    frozen = {one for one in tuner.parameters() if not one.requires_grad}
    assert frozen and wanted_dtypes(tuner) == dict.fromkeys(frozen, torch.bfloat16)
    if sys.platform == 'linux':
        lines = [line.split() for line in Path('/proc/self/maps').read_text().splitlines() if '.safetensors' in line]
        places = [tuple(int(end, 16) for end in line[0].split('-')) for line in lines]
        inside = [any(low <= one.data_ptr() < high for low, high in places) for one in tuner.parameters()]
        assert sum(inside) > 0.9 * len(inside)


class Hostile:
    def __reduce__(self):
        return os.system, ('echo executed > executed',)


@pytest.mark.parametrize('content', [Hostile(), [1, 2], 'text'])
def test_an_index_that_holds_something_else_is_refused_and_not_executed(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / INDEX).write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match='not the index of a sharded checkpoint'):
        ShardedCheckpoint(tmp_path)
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize(
    ('options', 'optim', 'message'),
    [
        (dict(model_wrapper=dict(type='MMDistributedDataParallel')), {}, 'strategy.model_wrapper'),
        (dict(units='no_function'), {}, "units='no_function'"),
        (dict(auto_wrap_policy='wrap_decoder_layers'), {}, 'strategy has auto_wrap_policy; allowed are units'),
        (dict(cpu_offload='no'), {}, "cpu_offload='no' must be True or False"),
        (dict(reduce_dtype='int8'), {}, "reduce_dtype='int8' must be 'float32'"),
        ({}, dict(type='AmpOptimWrapper'), "optim_wrapper.dtype='bfloat16'"),
        ({}, dict(type='ApexOptimWrapper'), 'optim_wrapper.type'),
        ({}, dict(optimizer=torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)), 'weights are sharded before'),
    ],
)
def test_what_cannot_be_sharded_is_refused(options, optim, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sharded(nn.Linear(2, 2), tmp_path, dict(dict(optimizer=dict(type='SGD', lr=1.0)), **optim), **options)
    assert not dist.is_initialized()


def test_compiling_is_refused(tmp_path):
    with pytest.raises(ValueError, match='compile'):
        FSDP2Strategy(work_dir=str(tmp_path)).prepare(nn.Linear(2, 2), compile=True)


if __name__ == '__main__':
    worker(int(sys.argv[1]), sys.argv[2])
