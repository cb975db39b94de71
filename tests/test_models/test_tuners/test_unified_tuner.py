"""UnifiedTuner on tiny Janus and Emu3: both tasks' losses, dropped prompts, alignment, prediction."""

import copy

import pytest
import tiny_vlms
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

from mergemix_mm.datasets import EncodeGeneration, UnifiedCollate
from mergemix_mm.functional import aia_loss
from mergemix_mm.models.attention import InteractionAlignment, interaction_spans
from mergemix_mm.models.losses import AIALoss

CLASSES = dict(janus='JanusModel', emu3='Emu3Model')
TASKS = ('gen', 'und')
PROMPTS = ('a red ring', 'dog', 'the third of all prompts')
STAGES = [dict(depth=(0.0, 0.5), target=0.2, delta=0.05), dict(depth=(0.5, 1.0), target=0.6, delta=0.1)]
TARGET, DELTA = torch.tensor([0.2, 0.6]), torch.tensor([0.05, 0.1])  # The tiny models have two layers.


def build(family='janus', packed=False, **kwargs):
    torch.manual_seed(0)
    vlm = dict(type=CLASSES[family], config=tiny_vlms.tiny_config(family), packed=packed)
    return MODELS.build(dict(type='UnifiedTuner', vlm=vlm, **kwargs))


def align(model, weight=5.0):
    model.alignment = InteractionAlignment(model.vlm, AIALoss(dict(gen=STAGES, und=STAGES), weight))
    model.alignment.recorder.start()
    return model


def batch_of(family, task, prompts=PROMPTS, seed=0, **kwargs):
    if task == 'und':
        answers = ['yes.', 'a red ball', 'no']
        samples = [([tiny_vlms.random_image(28, 28, i)], text, answers[i]) for i, text in enumerate(prompts)]
        return dict(tiny_vlms.tiny_batch(family, samples), task='und')
    encode = EncodeGeneration(tiny_vlms.tiny_processor(family), image_size=8, **kwargs)
    images = [tiny_vlms.random_image(8, 8, seed + i) for i in range(len(prompts))]
    samples = [encode(dict(prompt=text, images=[image])) for text, image in zip(prompts, images)]
    return UnifiedCollate()(samples)['inputs']


def maps_of(vlm, batch):
    """The library's own attention weights of a batch, one [B, H, L, L] per layer."""
    decoder, found = vlm.family.language_model, []
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation('eager')
    hooks = [layer.self_attn.register_forward_hook(lambda *args: found.append(args[-1][1])) for layer in decoder.layers]
    vlm.hidden(batch)
    for hook in hooks:
        hook.remove()
    decoder.set_attn_implementation(before)
    return found


def drawn(monkeypatch, *dropped):
    """Let the tuner drop these prompts."""
    monkeypatch.setattr(torch, 'rand', lambda count: 1 - torch.tensor(dropped).float())


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('family', CLASSES)
def test_ntp_is_the_cross_entropy_of_plain_logits(family, task):
    model, batch = build(family, drop_prompt=0.0), batch_of(family, task)
    losses = model(batch, mode='loss')
    assert losses.keys() == {f'loss_ntp_{task}', 'padding_share'}
    prepared = model.vlm.prepare(batch)
    logits = model.vlm.head_of(prepared)(model.vlm.hidden(prepared))
    codes = 32 if (family, task) == ('janus', 'gen') else logits.size(-1)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), prepared['labels'][:, 1:].flatten())
    assert logits.size(-1) == codes
    assert losses[f'loss_ntp_{task}'].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('family', CLASSES)
def test_aia_is_the_loss_of_the_intensity_of_eager_attention(family, task):
    model, batch = align(build(family, drop_prompt=0.0)), batch_of(family, task)
    losses = model(batch, mode='loss')
    assert losses.keys() == {f'loss_ntp_{task}', f'loss_aia_{task}', f'interaction_{task}', 'padding_share'}
    prepared = model.vlm.prepare(batch)
    queries, keys = interaction_spans(task, model.vlm.modality(prepared), prepared['labels'])
    maps = torch.stack([(layer * keys[:, None, None]).sum(-1).mean(1) for layer in maps_of(model.vlm, prepared)])
    intensity = (maps * queries).sum(-1) / queries.sum(-1)
    assert intensity.shape == (2, 3) and intensity.min() > 0.05
    expected = 5 * aia_loss(intensity, TARGET, DELTA)
    assert losses[f'loss_aia_{task}'].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses[f'interaction_{task}'].item() == pytest.approx(intensity.mean().item(), rel=1e-5)


@pytest.mark.parametrize('family', CLASSES)
def test_dropped_prompts_are_learnt_without_and_left_out_of_the_alignment(family, monkeypatch):
    model, batch = align(build(family)), batch_of(family, 'gen')
    drawn(monkeypatch, 0, 1, 0)
    losses = model(batch, mode='loss')
    blank = model.vlm.drop_prompts(batch, torch.tensor([False, True, False]))
    assert not torch.equal(blank['input_ids'], batch['input_ids'])
    drawn(monkeypatch, 0, 0, 0)
    ntp = model(blank, mode='loss')['loss_ntp_gen']
    assert losses['loss_ntp_gen'].item() == pytest.approx(ntp.item(), rel=1e-6)
    kept = {key: value[[0, 2]] if torch.is_tensor(value) else value for key, value in batch.items()}
    drawn(monkeypatch, 0, 0)
    alone = model(kept, mode='loss')
    for name in ('loss_aia_gen', 'interaction_gen'):
        assert losses[name].item() == pytest.approx(alone[name].item(), rel=1e-5)


def test_what_was_dropped_has_no_gradient_from_the_alignment(monkeypatch):
    model = align(build())
    drawn(monkeypatch, 0, 1, 0)
    gradients = []
    for second in ('dog', 'cat'):
        batch = batch_of('janus', 'gen', (PROMPTS[0], second, PROMPTS[2]), seed=0)
        if second == 'cat':  # Another image too.
            batch['target_images'][1] *= -1
        model.zero_grad()
        model(batch, mode='loss')['loss_aia_gen'].backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(grad.abs().max() > 1e-4 for grad in gradients[0].values())
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, atol=1e-8, rtol=1e-4)


def test_all_dropped_is_no_alignment_and_nothing_logged(monkeypatch):
    model = align(build())
    drawn(monkeypatch, 1, 1, 1)
    losses = model(batch_of('janus', 'gen'), mode='loss')
    assert losses['loss_aia_gen'] == 0 and 'interaction_gen' not in losses


def test_a_tenth_of_the_prompts_is_dropped_from_the_global_generator():
    model, found, batch = build(), [], batch_of('janus', 'gen')
    model.vlm.drop_prompts = lambda batch, dropped: found.append(dropped) or batch
    for seed in (0, 0, *range(1, 100)):
        torch.manual_seed(seed)
        with torch.no_grad():
            model(batch, mode='loss')
    assert torch.equal(found[0], found[1])
    assert torch.stack(found).float().mean().item() == pytest.approx(0.1, abs=0.04)
    count = len(found)
    model(batch_of('janus', 'und'), mode='loss')
    assert len(found) == count


@pytest.mark.parametrize('task', TASKS)
def test_the_alignment_trains_the_language_model(task):
    model, batch = align(build(drop_prompt=0.0)), batch_of('janus', task)
    decoder = model.vlm.family.language_model
    optimizer, losses = torch.optim.Adam(decoder.parameters(), lr=2e-2), []
    for _ in range(30):
        loss = model(batch, mode='loss')[f'loss_aia_{task}']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_the_batch_is_not_modified():
    model, batch = build(drop_prompt=0.9), batch_of('janus', 'gen')
    before = copy.deepcopy(batch)
    model(batch, mode='loss')
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[key], before[key]) for key in batch if key != 'task')


@pytest.mark.parametrize('family', CLASSES)
def test_predicts_images_and_answers(family):
    processor = tiny_vlms.tiny_processor(family)
    model = build(family, processor=processor, generation=dict(max_new_tokens=3), image_generation=dict(temperature=0))
    model.eval()
    batch = batch_of(family, 'gen', generate=True)
    assert 'target_images' not in batch
    samples = model(batch, [DataSample() for _ in PROMPTS], mode='predict')
    expected = model.vlm.generate_image(batch, temperature=0)
    for sample, image in zip(samples, expected):
        assert image.shape == (3, 8, 8) and torch.equal(sample.pred_image, image)
        assert image.min() >= 0 and image.max() <= 1
    prompts = {key: value for key, value in batch_of(family, 'und').items() if key != 'labels'}
    samples = model(prompts, [DataSample() for _ in PROMPTS], mode='predict')
    assert all(isinstance(sample.pred_answer, str) and 0 <= sample.pred_confidence <= 1 for sample in samples)


@pytest.mark.parametrize('family', CLASSES)
def test_scores_answers_and_still_draws_where_a_batch_of_generation_has_labels(family):
    model = build(family, image_generation=dict(temperature=0)).eval()
    batch = batch_of(family, 'und')
    samples = model(batch, [DataSample() for _ in PROMPTS], mode='predict')
    logp, length = (sum(sample.get(key) for sample in samples) for key in ('answer_logp', 'answer_length'))
    assert -logp / length == pytest.approx(model(batch, mode='loss')['loss_ntp_und'].item(), rel=1e-5)
    prompts = batch_of(family, 'gen', generate=True)
    prompts['labels'] = prompts['input_ids']
    samples = model(prompts, [DataSample() for _ in PROMPTS], mode='predict')
    assert all(sample.pred_image.shape == (3, 8, 8) and 'answer_logp' not in sample for sample in samples)


def test_a_runner_scores_generated_images(tmp_path):
    encode = dict(type='EncodeGeneration', processor=tiny_vlms.tiny_processor('janus'), generate=True)
    runner = Runner(
        model=build(image_generation=dict(guidance_scale=1.0)),
        work_dir=str(tmp_path),
        val_dataloader=dict(
            batch_size=4,
            num_workers=0,
            dataset=dict(type='ShapesGenerationDataset', length=8, image_size=24, pipeline=[encode]),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='UnifiedCollate', padding_side='left'),
        ),
        val_cfg=dict(),
        val_evaluator=dict(type='ShapesGenerationMetric'),
        default_scope='mmengine',
        experiment_name='scores',
    )
    values = runner.val()
    assert values.keys() == {f'generation/{name}' for name in ('color', 'position', 'both', 'unreadable')}
    assert values['generation/both'] <= min(values['generation/color'], values['generation/position'])


def test_what_is_saved_of_a_packed_model_while_it_is_aligned_knows_nothing_of_it(tmp_path):
    model = align(build(packed=True))
    model.vlm.save_pretrained(tmp_path / 'saved')
    texts = [path.read_text() for path in (tmp_path / 'saved').glob('*.json')]
    assert texts and not any('mergemix' in text for text in texts)


def test_bad_arguments_and_batches_are_refused():
    vlm = dict(type='HFVisionLanguageModel', config=tiny_vlms.tiny_config('llava'))
    with pytest.raises(TypeError, match='vlm=HFVisionLanguageModel generates no images; use JanusModel'):
        MODELS.build(dict(type='UnifiedTuner', vlm=vlm))
    with pytest.raises(ValueError, match=r'drop_prompt=1.0 must be in \[0, 1\)'):
        build(drop_prompt=1.0)
    with pytest.raises(ValueError, match=r"task='edit' of a batch must be one of \('gen', 'und'\)"):
        build()(dict(batch_of('janus', 'und'), task='edit'), mode='loss')
