"""What trains is float32, beside frozen weights of low precision."""

import pytest
import tiny_sphinx
import tiny_vlms
import torch
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample

from mergemix_mm.models.precision import widen_trained

LORA = dict(lora=dict(r=4))
PROJECTOR = dict(trainable=['projector'])


def build(**vlm):
    torch.manual_seed(0)
    vlm = dict(type='HFVisionLanguageModel', config=tiny_vlms.tiny_config('llava'), dtype='bfloat16', **vlm)
    processor = tiny_vlms.tiny_processor('llava')
    head, mixer = dict(type='SimPOHead'), dict(type='MergeMix')
    return MODELS.build(dict(type='VLMTuner', vlm=vlm, head=head, mixer=mixer, processor=processor))


@pytest.fixture(scope='module')
def batch():
    return tiny_vlms.tiny_batch('llava', [([tiny_vlms.random_image(28, 28, i)], 'what?', 'abc'[i]) for i in range(3)])


@pytest.mark.parametrize('options', [LORA, PROJECTOR, {}], ids=['lora', 'projector', 'all but the tower'])
def test_a_step_of_fine_tuning_is_not_lost_in_rounding(options, batch):
    model = build(**options)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32} and frozen == {torch.bfloat16}
    before = {name: p.detach().clone() for name, p in trained.items()}
    model.parse_losses(model(batch, mode='loss'))[0].backward()
    torch.optim.AdamW(trained.values(), lr=2e-5, weight_decay=0.0).step()
    name = next(name for name in trained if 'projector' in name and name.endswith('linear_2.weight'))
    assert (trained[name] != before[name]).float().mean() > 0.99


def test_it_computes_in_the_low_precision_with_and_without_the_trainers_autocast(batch):
    model = build(**PROJECTOR)
    found = model(batch)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(model(batch), found)
    assert found.dtype == torch.bfloat16
    prompts = {key: value for key, value in batch.items() if key != 'labels'}
    samples = model.eval()(prompts, [DataSample() for _ in range(3)], mode='predict')
    assert all(0 < sample.pred_confidence <= 1 for sample in samples)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('trainable', [[], ['projector'], ['language_model'], ['language_model', 'projector']], ids=str)
@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_a_model_answers_outside_of_its_tuner(family, trainable, dtype):
    """As it was loaded, and after training; a batch of unequal length, with and without images, padded on each side."""
    torch.manual_seed(0)
    config = tiny_vlms.tiny_config(family)
    vlm = MODELS.build(dict(type='HFVisionLanguageModel', config=config, dtype=dtype, trainable=trainable)).eval()
    images = [tiny_vlms.random_image(40, 56, i) for i in range(2)]
    samples = [([images[0]], 'what is it?', ''), ([images[1]], 'a', ''), ([], 'hello there', '')]
    for widened in (False, True):
        if widened:
            widen_trained(vlm.parameters())
        answers = []
        for side in ('left', 'right'):
            batch = tiny_vlms.tiny_batch(family, samples, side)
            del batch['labels']
            assert (batch['attention_mask'] == 0).any()
            assert vlm.hidden(batch).isfinite().all()
            found = vlm.generate(batch, max_new_tokens=3, min_new_tokens=3)
            assert found.sequences.shape == (3, 3) and found.logps.isfinite().all()
            answers.append(found.sequences)
        assert torch.equal(*answers)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('trainable', [[], ['language_model'], None], ids=str)
@pytest.mark.parametrize('family', tiny_vlms.UNIFIED)
def test_a_model_draws_images_outside_of_its_tuner(family, trainable, dtype):
    options = {} if trainable is None else dict(trainable=trainable)
    kind = 'JanusModel' if family == 'janus' else 'Emu3Model'
    torch.manual_seed(0)
    vlm = MODELS.build(dict(type=kind, config=tiny_vlms.tiny_config(family), dtype=dtype, **options)).eval()
    end = '<begin_of_image>' if family == 'janus' else '<|image start|>3*4<|image token|>'
    texts = [f'dog{end}', f'two red cats{end}']
    for widened in (False, True):
        if widened:
            widen_trained(vlm.parameters())
        pictures = []
        for side in ('left', 'right'):
            given = dict(add_special_tokens=False, return_tensors='pt', padding=True, padding_side=side)
            batch = dict(tiny_vlms.tiny_tokenizer(family)(texts, **given))
            assert (batch['attention_mask'] == 0).any()
            found = vlm.generate_image(batch, temperature=0)
            assert found.dtype == torch.float32 and found.shape[:2] == (2, 3) and found.isfinite().all()
            pictures.append(found)
        assert torch.equal(*pictures)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('parts', [[], ['projector'], ['language_model'], ['vision_tower', 'projector']], ids=str)
def test_sphinx_answers_outside_of_its_tuner(parts, dtype):
    config = tiny_sphinx.sphinx_config(trainable=parts)
    config['language_model']['dtype'] = dtype
    config['backbone']['encoders'][0]['frozen'] = 'vision_tower' not in parts
    torch.manual_seed(0)
    vlm = MODELS.build(config).eval()
    images = [tiny_vlms.random_image(40, 40, i) for i in range(2)]
    samples = [([images[0]], 'what is it?', 'a'), ([images[1]], 'a', 'a'), ([], 'hello there', 'a')]
    batch = tiny_sphinx.batch(tiny_sphinx.processor(), samples, generate=True)['inputs']
    assert (batch['attention_mask'] == 0).any()
    order = (batch['attention_mask'] == 0).long().argsort(dim=1, stable=True)
    tokens = {key: batch[key].gather(1, order) for key in ('input_ids', 'attention_mask')}
    for widened in (False, True):
        if widened:
            widen_trained(vlm.parameters())
        found = [vlm.generate(one, max_new_tokens=3, min_new_tokens=3) for one in (batch, {**batch, **tokens})]
        assert found[0].sequences.shape == (3, 3) and found[0].logps.isfinite().all()
        assert torch.equal(found[0].sequences, found[1].sequences)


def test_a_model_of_one_precision_runs_as_it_is(batch):
    model = build(trainable=[])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model._low_dtype is None and model(batch).dtype == torch.bfloat16


@pytest.mark.parametrize('family', tiny_vlms.SCORED)
def test_a_model_cast_as_a_whole_scores_images_of_float32(family):
    """There is no autocast then."""
    images = [[tiny_vlms.random_image(28, 28, i)] for i in range(3)]
    batch = tiny_vlms.tiny_batch(family, [(group, 'what?', 'abc') for group in images])
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        vlm = dict(type='HFVisionLanguageModel', config=tiny_vlms.tiny_config(family))
        tuner = dict(type='VLMTuner', vlm=vlm, head=dict(type='SimPOHead'), mixer=dict(type='MergeMix'))
        model = MODELS.build(tuner).to(dtype)
        loss, log = model.parse_losses(model(batch, mode='loss'))
        loss.backward()
        losses.append(log['loss_sft'].item())
        assert log['loss_simpo'].isfinite()
    assert losses[1] == pytest.approx(losses[0], rel=0.03) and losses[1] != losses[0]
