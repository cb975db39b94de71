"""AIAHook in real Runners on tiny models: what it switches, adds and shows."""

import json
from pathlib import Path
from unittest import mock

import pytest
import tiny_vlms
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mergemix_mm.engine.hooks.aia_hook import AIAHook

STAGES = [dict(depth=(0.0, 1.0), target=0.5, delta=0.1)]
PRESET = dict(gen=STAGES, und=STAGES)


@pytest.fixture(scope='module')
def processor():
    return tiny_vlms.tiny_processor('janus')


def unified_data(processor):
    drawn = dict(length=32, image_size=24)
    encode = [dict(type='EncodeGeneration', processor=processor, image_size=8)]
    read = [dict(type='EncodeConversation', processor=processor)]
    return dict(
        type='UnifiedDataset',
        gen=dict(type='ShapesGenerationDataset', pipeline=encode, **drawn),
        und=dict(type='ShapesConversationDataset', pipeline=read, **drawn),
    )


def build_model(tuner='UnifiedTuner'):
    torch.manual_seed(0)
    vlm = dict(UnifiedTuner='JanusModel', VLMTuner='HFVisionLanguageModel')[tuner]
    return MODELS.build(dict(type=tuner, vlm=dict(type=vlm, config=tiny_vlms.tiny_config('janus'))))


def build_runner(tmp_path, processor, model=None, max_iters=8, tuner='UnifiedTuner', dataset=None, **hook):
    hook = dict(type='AIAHook', preset=PRESET, interval=4) | hook
    dataset = dataset or (unified_data(processor) if tuner == 'UnifiedTuner' else unified_data(processor)['und'])
    return Runner(
        model=model or build_model(tuner),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            batch_size=4,
            num_workers=0,
            dataset=dataset,
            sampler=dict(type='ModalitySampler', batch_size=4),
            collate_fn=dict(type='UnifiedCollate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=max_iters),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4, max_keep_ckpts=9),
        ),
        log_processor=dict(by_epoch=False, window_size=1),
        custom_hooks=[dict(type='StepSeedHook'), hook],
        randomness=dict(seed=0),
        default_scope='mmengine',
        experiment_name=f'{tmp_path.name}-{max_iters}',
    )


def train(runner):
    """Train, and return of every step its number from 0, what the model logged, and what the layers recorded."""
    steps = []
    hook = next(hook for hook in runner.hooks if isinstance(hook, AIAHook))
    after = hook.after_train_iter

    def spy(runner, batch_idx, data_batch=None, outputs=None):
        steps.append((runner.iter, outputs, runner.model.alignment.last))
        after(runner, batch_idx, data_batch, outputs)

    with mock.patch.object(hook, 'after_train_iter', spy):
        runner.train()
    return steps


def logged(tmp_path):
    """Lines of the visualizer's scalar file."""
    (path,) = Path(tmp_path).rglob('scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_losses_curves_and_figures_of_both_tasks(tmp_path, processor):
    steps = train(build_runner(tmp_path, processor))
    intensities = [last for _, _, last in steps]
    lines = logged(tmp_path)
    names = {name for line in lines for name in line}
    for task in ('gen', 'und'):
        assert {f'loss_ntp_{task}', f'loss_aia_{task}', f'interaction_{task}'} <= names
    short = [line for line in lines if 'loss' in line]
    assert len(short) == 8 and not any('layer' in name for line in short for name in line)
    curves = [line for line in lines if 'interaction_gen/layer_00' in line or 'interaction_und/layer_00' in line]
    assert [line['step'] for line in curves] == [4, 8]
    for line, steps in zip(curves, (intensities[:4], intensities[4:])):
        for task in {step.task for step in steps}:
            own = [step for step in steps if step.task == task]
            mean = sum(step.sums for step in own) / sum(step.count for step in own)
            found = [line[f'interaction_{task}/layer_0{layer}'] for layer in range(2)]
            assert found == pytest.approx(mean.tolist(), rel=1e-5)
    assert {step.task for step in intensities} == {'gen', 'und'}
    images = sorted(path.name for path in Path(tmp_path).rglob('interaction_curves*.png'))
    assert images == ['interaction_curves_4.png', 'interaction_curves_8.png']


@pytest.mark.parametrize('tuner', ['UnifiedTuner', 'VLMTuner'])
def test_after_training_outputs_are_those_of_the_same_weights_without_it_bit_by_bit(tmp_path, processor, tuner):
    runner = build_runner(tmp_path, processor, tuner=tuner, max_iters=4)
    before = runner.model.vlm.family.language_model.config._attn_implementation
    runner.train()
    model, fresh = runner.model, build_model(tuner)
    fresh.load_state_dict(model.state_dict())
    assert model.alignment is None
    assert model.vlm.family.language_model.config._attn_implementation == before
    for data in runner.train_dataloader:
        found = []
        for each in (model, fresh):
            torch.manual_seed(0)
            found.append(each.train()(data['inputs'], mode='loss'))
        assert found[0].keys() == found[1].keys() and not any('aia' in name for name in found[0])
        assert all(torch.equal(found[0][name], value) for name, value in found[1].items())
        with torch.no_grad():
            assert torch.equal(*(each(data['inputs'], mode='tensor') for each in (model, fresh)))


def test_vlm_tuner_is_aligned_on_understanding(tmp_path, processor):
    build_runner(tmp_path, processor, tuner='VLMTuner', max_iters=4, preset=dict(und=STAGES), layers=[1]).train()
    lines = logged(tmp_path)
    assert all(line['loss_aia_und'] > 0 for line in lines if 'loss' in line)
    (curve,) = [line for line in lines if any('/' in name for name in line)]
    assert [name for name in curve if name != 'step'] == ['interaction_und/layer_01']


def test_weight_and_schedule(tmp_path, processor):
    options = dict(weight=dict(gen=0.0, und=2.0), schedule=[(0, 0), (0.5, 1)])
    steps = train(build_runner(tmp_path, processor, max_iters=12, **options))
    assert {outputs['loss_aia_gen'].item() for _, outputs, _ in steps if 'loss_aia_gen' in outputs} == {0}
    und = [(step, outputs['loss_aia_und'].item()) for step, outputs, _ in steps if 'loss_aia_und' in outputs]
    weights = [2 * min(step / 6, 1) for step, _ in und]
    # The intensity of random weights hardly changes in 12 steps: the loss goes with its weight.
    ratios = [loss / weight for (_, loss), weight in zip(und, weights) if weight]
    assert len(set(weights)) > 3 and max(ratios) < 2 * min(ratios)
    assert [loss for (_, loss), weight in zip(und, weights) if not weight] in ([], [0])


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, processor):
    whole = build_runner(tmp_path / 'whole', processor)
    whole.train()
    build_runner(tmp_path / 'part', processor, max_iters=4).train()
    resumed = build_runner(tmp_path / 'part', processor, max_iters=8)
    resumed.load_or_resume = lambda: resumed.resume(str(tmp_path / 'part' / 'iter_4.pth'))
    resumed.train()
    assert resumed.iter == 8
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values()):
        assert torch.equal(one, other), name
    start = build_model().state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in whole.model.state_dict().items())


def test_bad_arguments_and_models_are_refused(tmp_path, processor):
    with pytest.raises(ValueError, match='AIAHook: interval=0 must be at least 1'):
        AIAHook(interval=0)
    with pytest.raises(ValueError, match="targets='no_preset' must be one of"):
        AIAHook('no_preset')
    runner = build_runner(tmp_path, processor, preset=dict(und=STAGES))
    with pytest.raises(ValueError, match="task='gen' has no targets"):
        runner.train()
    gap = dict(gen=STAGES, und=[dict(layers=(0, 1), target=0.5, delta=0.1)])
    with pytest.raises(ValueError, match='layer 1 of 2 belongs to 0 of the stages'):
        build_runner(tmp_path / 'gap', processor, preset=gap).train()

    class Other(BaseModel):
        def forward(self, *args, **kwargs):
            return {}

    with pytest.raises(TypeError, match="the model Other cannot be aligned. Use model.type='UnifiedTuner'"):
        AIAHook().before_train(mock.Mock(model=Other()))
