"""tools/train.py on a vision-language model: a killed and resumed run of mixed SimPO, and a sharded run."""

import random

import numpy as np
import pytest
import torch
from fuzz.ranks import INTERVAL, LARGEST, METHODS, Runs, difference
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop

from mergemix_mm.models import VLMTuner
from mergemix_mm.toy import shapes_words

pytestmark = pytest.mark.slow

CONFIG = f"""
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mergemix_mm'])
processor = dict(type='ShapesProcessor', image_size=24, patch_size=8)
sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.2)
model = dict(
    type='VLMTuner',
    vlm=dict(
        type='HFVisionLanguageModel',
        config=dict(
            model_type='llava',
            vision_config=dict(sizes, model_type='clip_vision_model', image_size=24, patch_size=8),
            # Dropout draws within a step, beside MergeMix.
            text_config=dict(
                sizes,
                model_type='llama',
                vocab_size={len(shapes_words())},
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                attention_dropout=0.1,
            ),
            image_token_index=4,
            image_seq_length=9,
        ),
    ),
    head=dict(type='SimPOHead', beta=2.0),
    mixer=dict(type='MergeMix', per_image=True),
    processor=processor,
)
# Ten records make epochs of three steps, the last one filled up.
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    collate_fn=dict(type='ConversationCollate'),
    sampler=dict(type='ModalitySampler', batch_size=4),
    dataset=dict(
        type='ShapesConversationDataset',
        length=10,
        image_size=24,
        pipeline=[dict(type='EncodeConversation', processor=processor)],
    ),
)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01), clip_grad=dict(max_norm=1.0))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, end=8)]
train_cfg = dict(by_epoch=False, max_iters=8)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3))
log_processor = dict(by_epoch=False)
custom_hooks = [dict(type='StepSeedHook'), dict(type='SavePretrainedHook')]
randomness = dict(seed=0)
"""


@HOOKS.register_module()
class KillInSixthStep(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 5:
            raise KeyboardInterrupt


@pytest.fixture
def ratios(monkeypatch):
    """The ratios of every batch that is mixed."""
    drawn, mix = [], VLMTuner.mix

    def record(self, inputs):
        result = mix(self, inputs)
        drawn.append(result.ratio.tolist())
        return result

    monkeypatch.setattr(VLMTuner, 'mix', record)
    return drawn


@pytest.fixture(autouse=True)
def quick_loops(monkeypatch):
    """No waiting: two seconds between epochs, and five for each worker that the garbage collector stops."""
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    run = IterBasedTrainLoop.run

    def run_and_stop_workers(self):
        try:
            return run(self)
        finally:
            self.dataloader._iterator = self.dataloader_iterator._iterator = None

    monkeypatch.setattr(IterBasedTrainLoop, 'run', run_and_stop_workers)


def weights(folder):
    return torch.load(folder / 'iter_8.pth', weights_only=False)['state_dict']


@pytest.mark.parametrize('workers', [0, 1])
def test_a_killed_and_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, run_tool, ratios, workers):
    config, killed = tmp_path / 'shapes.py', tmp_path / 'killed.py'
    config.write_text(CONFIG + f"train_dataloader['num_workers'] = {workers}\n")
    killed.write_text(config.read_text() + "custom_hooks.append(dict(type='KillInSixthStep'))\n")
    run_tool('train', config, '--work-dir', tmp_path / 'whole')
    with pytest.raises(KeyboardInterrupt):
        run_tool('train', killed, '--work-dir', tmp_path / 'killed')
    assert (tmp_path / 'killed/last_checkpoint').read_text().endswith('iter_3.pth')
    # A new process starts anywhere.
    torch.seed(), np.random.seed(), random.seed()
    run_tool('train', config, '--work-dir', tmp_path / 'killed', '--resume')

    whole, resumed = weights(tmp_path / 'whole'), weights(tmp_path / 'killed')
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    drawn, before, after = ratios[:8], ratios[8:14], ratios[14:]
    assert before == drawn[:6] and after == drawn[3:]
    assert len({tuple(batch) for batch in drawn}) == 8


def test_a_sharded_run_of_two_processes_equals_one_process(tmp_path, run_tool):
    """By tools/dist_train.sh; all methods are compared so by tests/fuzz/ranks.py."""
    runs = Runs(METHODS['SFT'], tmp_path / 'runs')
    two = runs.train('two')
    run_tool('train', runs.write('one', ranks=1, sharded=False), '--work-dir', tmp_path / 'one', '--no-validate')
    found, expected = runs.weights(two), runs.weights(tmp_path / 'one')
    assert difference(found, expected) <= LARGEST < 1e-3 < difference(found, runs.weights(two, INTERVAL))
    assert (two / 'pretrained' / 'model.safetensors').is_file()
