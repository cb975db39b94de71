"""SphinxModel under the tuner, the mixers and the hooks that the other models have, unchanged."""

import pytest
import tiny_sphinx
import tiny_vlms
import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner
from test_models.test_tuners.test_vlm_tuner import MIXERS, SIMPO

from mergemix_mm.models.attention import InteractionRecorder, interaction_spans

STAGES = [dict(depth=(0.0, 1.0), target=0.5, delta=0.1)]


def build(head=None, mixer=None, processor=None, **vlm):
    torch.manual_seed(0)
    config = tiny_sphinx.sphinx_config(grid=2, **vlm)
    return MODELS.build(
        dict(type='VLMTuner', vlm=config, head=head or dict(type='SFTHead'), mixer=mixer, processor=processor)
    )


def make_batch(generate=False):
    images = [tiny_vlms.random_image(height, width, width) for height, width in ((40, 40), (10, 40), (40, 15))]
    samples = [([image], f'what is it, {i}?', 'ab' * (i + 1)) for i, image in enumerate(images)]
    return tiny_sphinx.batch(tiny_sphinx.processor(grid=2), [*samples, ([], 'hello', 'you')], generate=generate)


def test_supervised_loss_is_the_cross_entropy_of_the_answers():
    tuner, batch = build(), make_batch()['inputs']
    found = tuner.loss(batch)['loss_sft']
    logits = tuner.vlm.head(tuner.vlm.hidden(batch))[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch['labels'][:, 1:].flatten())
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize('mixer', MIXERS)
def test_mixed_simpo_has_losers_for_the_samples_with_images(mixer):
    tuner, batch = build(SIMPO, MIXERS[mixer]), make_batch()['inputs']
    torch.manual_seed(0)
    losses = tuner.loss(batch)
    assert losses['loss_simpo'] > 0 and 0 <= losses['ratio_mean'] < 1
    result = tuner.mix_result
    assert result.owner.tolist() == [0, 1, 2] and [list(one.shape) for one in result.images] == [[3, 56, 56]] * 3
    sum(losses[name] for name in ('loss_sft', 'loss_simpo')).backward()
    grads = {name: one.grad for name, one in tuner.named_parameters() if one.grad is not None}
    assert any('vision.neck' in name for name in grads) and not any('branches' in name for name in grads)


def test_mergemix_scores_with_the_first_encoder_at_its_own_size():
    tuner, seen = build(SIMPO, dict(type='MergeMix')), []
    branch = tuner.vlm.family.model.vision.backbone.branches[0]
    assert tuner.vlm.vision_encoder is branch
    branch.register_forward_hook(lambda *_: seen.append('whole'))
    torch.manual_seed(0)
    tuner.loss(make_batch()['inputs'])
    assert tuner.mix_result.grid == (2, 2) and branch.encoder.config.image_size == 28
    # The scoring pass calls parts of the encoder: the branch itself runs for the clean and the mixed images alone.
    assert len(seen) == 2


def test_generated_answers_reach_the_samples():
    tuner = build(processor=tiny_sphinx.processor(grid=2)).eval()
    batch = make_batch(generate=True)
    samples = tuner.predict(batch['inputs'], batch['data_samples'])
    assert len(samples) == 4 and all(isinstance(one.pred_answer, str) for one in samples)
    assert all(0 <= one.pred_confidence <= 1 for one in samples)


@torch.no_grad()
def test_the_recorder_sees_the_language_model_and_not_the_encoders():
    tuner, batch = build().eval(), make_batch()['inputs']
    vlm = tuner.vlm
    spans = interaction_spans('und', vlm.modality(batch), batch['labels'])
    found = {}
    for backend in ('fused', 'lse', 'eager'):
        with InteractionRecorder(vlm, backend=backend) as recorder:
            recording = recorder.recording(*spans)
            found[backend] = vlm.hidden(batch, **recording.attention_kwargs), recording.intensity()
    assert found['fused'][1].shape == (2, 4)
    assert torch.allclose(found['fused'][1], found['eager'][1], atol=1e-5)
    assert torch.allclose(found['lse'][1], found['eager'][1], atol=1e-5)
    real = batch['attention_mask'].bool()
    assert torch.allclose(found['fused'][0][real], vlm.hidden(batch)[real], atol=1e-5)
    assert recording.valid.tolist() == [True, True, True, False]
    # Attention to image tokens: some, and none of the sample without images.
    assert (found['fused'][1][:, :3] > 0).all() and (found['fused'][1][:, 3] == 0).all()


@pytest.mark.parametrize('tuning', [dict(), dict(head=SIMPO, mixer=dict(type='MergeMix'))], ids=['sft', 'simpo'])
def test_aia_hook_aligns_it_and_the_run_saves_a_folder(tmp_path, tuning):
    processor = tiny_sphinx.processor(grid=2)
    drawn = dict(type='ShapesConversationDataset', length=32, image_size=24)
    runner = Runner(
        model=build(processor=processor, **tuning),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            batch_size=4,
            num_workers=0,
            dataset=dict(drawn, pipeline=[dict(type='EncodeConversation', processor=processor)]),
            sampler=dict(type='ModalitySampler', batch_size=4),
            collate_fn=dict(type='ConversationCollate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=3),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        custom_hooks=[
            dict(type='StepSeedHook'),
            dict(type='AIAHook', preset=dict(und=STAGES), interval=3),
            dict(type='SavePretrainedHook'),
        ],
        log_processor=dict(by_epoch=False, window_size=1),
        randomness=dict(seed=0),
        default_scope='mmengine',
        experiment_name=tmp_path.name,
    )
    before = {name: value.clone() for name, value in runner.model.vlm.family.model.vision.backbone.state_dict().items()}
    runner.train()
    scalars = {name: log.data[0] for name, log in runner.message_hub.log_scalars.items()}
    assert len(scalars['train/loss_aia_und']) == 3 and (scalars['train/loss_aia_und'] > 0).all()
    assert 0 < scalars['train/interaction_und'][-1] < 1
    assert ('train/loss_simpo' in scalars) == ('mixer' in tuning)
    after = runner.model.vlm.family.model.vision.backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert (tmp_path / 'pretrained/language_model/config.json').is_file()
    assert (tmp_path / 'pretrained/sphinx_processor.json').is_file()
