"""tools/evaluate.py on a tiny LLaVA and drawn shapes: two benchmarks, one model, one table."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from limits import HANGS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS

from mergemix_mm.datasets import ConversationCollate, EncodeConversation
from mergemix_mm.engine.launch import LaunchError
from mergemix_mm.models import VLMTuner
from mergemix_mm.toy import ShapesConversationDataset, shapes_words

ROOT = Path(__file__).parents[2]

CONFIG = f"""
custom_imports = dict(imports=['mergemix_mm'])
processor = dict(type='ShapesProcessor', image_size=24, patch_size=8)
encode = dict(type='EncodeConversation', processor=processor, max_length=8)
sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.2)
model = dict(
    type='VLMTuner',
    vlm=dict(
        type='HFVisionLanguageModel',
        config=dict(
            model_type='llava',
            vision_config=dict(sizes, model_type='clip_vision_model', image_size=24, patch_size=8),
            text_config=dict(
                sizes,
                model_type='llama',
                vocab_size={len(shapes_words())},
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            ),
            image_token_index=4,
            image_seq_length=9,
        ),
    ),
    processor=processor,
    generation=dict(max_new_tokens=2),
)
# Of the model's own data nothing is read.
test_dataloader = dict(dataset=dict(type='ConversationDataset', data_root='nowhere'))
test_evaluator = dict(type='Accuracy')
test_cfg = dict()
"""
LOADER = """
test_dataloader = dict(
    batch_size=4,
    num_workers=0,
    collate_fn=dict(type='ConversationCollate', padding_side={side!r}),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset={dataset},
)
"""
SHAPES = "dict(type='ShapesConversationDataset', length={length}, image_size=24, pipeline={pipeline})"
ANSWERS = SHAPES.format(length=10, pipeline='[]')
# The encoding of another model stands here, and gives way.
LOSSES = SHAPES.format(length=6, pipeline="[dict(type='EncodeConversation', processor=None)]")


@HOOKS.register_module()
class WatchBenchmarks(Hook):
    seen = []

    def before_test_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append((len(runner.test_dataloader), type(runner.test_evaluator.metrics[0]).__name__))


@pytest.fixture
def files(tmp_path):
    """The config, a checkpoint, and a benchmark of generated and one of given answers."""
    (tmp_path / 'model.py').write_text(CONFIG)
    (tmp_path / 'answers.v1.py').write_text(
        LOADER.format(side='left', dataset=ANSWERS)
        + "test_evaluator = [dict(type='AnswerAccuracy'), dict(type='AnswerCalibrationError')]\n"
    )
    (tmp_path / 'losses.py').write_text(
        LOADER.format(side='right', dataset=LOSSES)
        + "test_evaluator = dict(type='AnswerLoss')\nencode_options = dict(generate=False)\n"
    )
    torch.manual_seed(0)
    tuner = MODELS.build(Config.fromfile(tmp_path / 'model.py').model)
    torch.save(dict(state_dict=tuner.state_dict()), tmp_path / 'weights.pth')
    return tmp_path, tuner.eval()


def test_a_table_of_two_benchmarks_from_one_model_that_is_built_and_loaded_once(files, run_tool, monkeypatch, capsys):
    folder, tuner = files
    built, make = [], VLMTuner.__init__
    monkeypatch.setattr(VLMTuner, '__init__', lambda self, **kwargs: built.append(self) or make(self, **kwargs))
    (folder / 'model.py').write_text(CONFIG + "custom_hooks = [dict(type='WatchBenchmarks')]\n")
    WatchBenchmarks.seen.clear()
    arguments = ('model.py', 'weights.pth', 'answers.v1.py', 'losses.py')
    output = folder / 'new' / 'results.json'
    run_tool('evaluate', *(folder / name for name in arguments), '--work-dir', folder / 'work', '--output', output)

    assert len(built) == 1
    assert all(torch.equal(value, built[0].state_dict()[key]) for key, value in tuner.state_dict().items())
    # Three batches of ten samples, two of six.
    assert WatchBenchmarks.seen == [(3, 'AnswerAccuracy')] * 3 + [(2, 'AnswerLoss')] * 2

    written = json.loads(output.read_text())
    found = written['benchmarks']
    assert list(found) == ['answers_v1', 'losses'] and [one['samples'] for one in found.values()] == [10, 6]
    assert written['checkpoint'].endswith('weights.pth') and os.listdir(output.parent) == ['results.json']
    encode = EncodeConversation(dict(type='ShapesProcessor', image_size=24, patch_size=8))
    dataset = ShapesConversationDataset(length=6, image_size=24, pipeline=[encode])
    loss = tuner.loss(ConversationCollate()(list(map(dataset.__getitem__, range(6))))['inputs'])['loss_sft']
    assert found['losses']['metrics']['answer/loss'] == pytest.approx(loss.item(), rel=1e-5)
    assert 0 <= found['answers_v1']['metrics']['answer/accuracy'] <= 100

    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = rows.index(['benchmark', 'metric', 'value', 'samples'])
    expected = [
        [name, metric, f'{value:.3f}', str(one['samples'])]
        for name, one in found.items()
        for metric, value in one['metrics'].items()
    ]
    assert rows[start + 2 : start + 2 + len(expected)] == expected and len(expected) > 8


def test_missing_data_of_any_benchmark_stop_before_a_model_is_built(files, run_tool, monkeypatch):
    folder, _ = files
    monkeypatch.setattr(VLMTuner, '__init__', None)
    with pytest.raises(LaunchError, match=r"test_dataloader\.pope\.dataset\.data_root='data/coco': there is no such"):
        run_tool('evaluate', folder / 'model.py', folder / 'weights.pth', folder / 'losses.py', 'pope')


def merged(load_tool, *arguments):
    tool = load_tool('evaluate')
    args = tool.parse_args([*map(str, arguments)])
    return tool.merge_args(tool.launch.load_config(args.config), args)


def test_names_are_those_of_the_repository_and_options_reach_into_each(files, load_tool):
    folder, _ = files
    options = ['--cfg-options', 'test_dataloader.pope.dataset.data_root=there', 'model.generation.max_new_tokens=5']
    cfg = merged(load_tool, folder / 'model.py', 'weights.pth', 'pope', 'vqav2', '--amp', *options)
    assert list(cfg.test_dataloader) == ['pope', 'vqav2'] and cfg.load_from == 'weights.pth'
    assert cfg.test_dataloader.pope.dataset.data_root == 'there' and cfg.model.generation.max_new_tokens == 5
    assert cfg.test_evaluator.vqav2.type == 'VQAv2Accuracy' and cfg.test_cfg.fp16
    for loader in cfg.test_dataloader.values():
        assert loader.dataset.pipeline == [dict(cfg.encode, max_length=None, generate=True)]
        assert loader.pin_memory and not loader.persistent_workers


def test_a_classifier_takes_the_inputs_of_its_benchmark_as_they_are(files, load_tool):
    folder, _ = files
    (folder / 'classifier.py').write_text("model = dict(type='ImageClassifier')\n")
    cfg = merged(load_tool, folder / 'classifier.py', 'weights.pth', 'cifar100-c')
    loader = cfg.test_dataloader['cifar100-c']
    assert [one.type for one in loader.dataset.pipeline] == ['Resize', 'PackInputs']
    assert loader.collate_fn.type == 'default_collate'


def test_the_encoding_follows_the_transforms_of_the_task(files, load_tool):
    folder, _ = files
    pipeline = "[dict(type='Task'), dict(type='EncodeConversation', processor=None)]"
    (folder / 'task.py').write_text(
        LOADER.format(side='left', dataset=SHAPES.format(length=1, pipeline=pipeline))
        + "test_evaluator = dict(type='AnswerAccuracy')\nencode_options = dict(max_length=9, chat_template='llava')\n"
    )
    cfg = merged(load_tool, folder / 'model.py', 'weights.pth', folder / 'task.py')
    encode = dict(cfg.encode, generate=True, max_length=9, chat_template='llava')
    assert cfg.test_dataloader.task.dataset.pipeline == [dict(type='Task'), encode]


def test_mistakes_in_the_command_line_are_named(files, load_tool):
    folder, _ = files
    model, weights = folder / 'model.py', folder / 'weights.pth'
    (folder / 'bare.py').write_text("model = dict(type='VLMTuner')\n")
    with pytest.raises(LaunchError, match='CONFIG: .*bare.py has no `encode`'):
        merged(load_tool, folder / 'bare.py', weights, 'pope')
    with pytest.raises(LaunchError, match=r'BENCHMARK: .*pop.*Close matches: _base_/datasets/pope\.py'):
        merged(load_tool, model, weights, 'pop')
    with pytest.raises(LaunchError, match=r'BENCHMARK: there is no file .*losse\.py\. Close matches in .*losses\.py'):
        merged(load_tool, model, weights, folder / 'losse.py')
    with pytest.raises(LaunchError, match='llava-pretrain_bs32.py has no test_dataloader and no test_evaluator'):
        merged(load_tool, model, weights, 'llava-pretrain_bs32')
    with pytest.raises(LaunchError, match='BENCHMARK: pope, pope: each name may be there once'):
        merged(load_tool, model, weights, 'pope', 'pope')
    with pytest.raises(LaunchError, match=r"'none' .*no model\.vlm\.pretrained"):
        merged(load_tool, model, 'none', 'pope')


def test_what_json_cannot_hold_becomes_text(load_tool):
    tool = load_tool('evaluate')
    assert [tool.plain(value) for value in (1, 2.5, float('inf'), 'x')] == [1.0, 2.5, 'inf', 'x']


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(files, run_command, run_tool):
    folder, _ = files
    paths = [str(folder / name) for name in ('model.py', 'weights.pth', 'losses.py')]
    outputs = [folder / f'{name}.json' for name in ('one', 'two')]
    run_tool('evaluate', *paths, '--work-dir', folder / 'one', '--output', outputs[0])
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    tool = [str(ROOT / 'tools' / 'evaluate.py'), *paths, '--work-dir', str(folder / 'two'), '--output', str(outputs[1])]
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    done = run_command([*torchrun, *tool, '--launcher', 'pytorch'], timeout=HANGS, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads(path.read_text())['benchmarks']['losses'] for path in outputs)
    assert one['samples'] == two['samples'] == 6
    assert two['metrics'] == pytest.approx(one['metrics'], rel=1e-5)
    table = [line.split() for line in done.stdout.splitlines()]
    assert sum(row[:2] == ['losses', 'answer/loss'] for row in table) == 1
