"""What trains is float32, beside frozen weights of low precision."""

import pytest
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


@pytest.mark.parametrize('trainable', [[], ['projector'], ['language_model'], ['language_model', 'projector']], ids=str)
@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_a_model_answers_outside_of_its_tuner(family, trainable):
    torch.manual_seed(0)
    config = tiny_vlms.tiny_config(family)
    vlm = MODELS.build(dict(type='HFVisionLanguageModel', config=config, dtype='bfloat16', trainable=trainable)).eval()
    widen_trained(vlm.parameters())
    images = [[tiny_vlms.random_image(40, 56, i)] for i in range(2)]
    batch = tiny_vlms.tiny_batch(family, [(group, 'what?', 'abc') for group in images])
    del batch['labels']
    assert vlm.hidden(batch).isfinite().all()
    found = vlm.generate(batch, max_new_tokens=3)
    assert found.sequences.shape == (2, 3) and found.logps.isfinite().all()


@pytest.mark.parametrize('trainable', [[], ['language_model'], None], ids=str)
@pytest.mark.parametrize('family', tiny_vlms.UNIFIED)
def test_a_model_draws_images_outside_of_its_tuner(family, trainable):
    options = {} if trainable is None else dict(trainable=trainable)
    kind = 'JanusModel' if family == 'janus' else 'Emu3Model'
    vlm = MODELS.build(dict(type=kind, config=tiny_vlms.tiny_config(family), dtype='bfloat16', **options)).eval()
    widen_trained(vlm.parameters())
    if family == 'janus':
        ids = torch.randint(20, 200, (2, 6))
        ids[:, -1] = tiny_vlms.token_id('janus', '<begin_of_image>')
    else:
        text = '<|extra_203|>dog<|image start|>3*4<|image token|>'
        ids = tiny_vlms.tiny_tokenizer('emu3')([text] * 2, add_special_tokens=False, return_tensors='pt')['input_ids']
    found = vlm.generate_image(dict(input_ids=ids, attention_mask=torch.ones_like(ids)))
    assert found.dtype == torch.float32 and found.shape[:2] == (2, 3) and found.isfinite().all()


def test_a_model_of_one_precision_runs_as_it_is(batch):
    model = build(trainable=[])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model._low_dtype is None and model(batch).dtype == torch.bfloat16


@pytest.mark.parametrize('family', [family for family in tiny_vlms.FAMILIES if family != 'qwen2_5_vl'])
def test_a_model_cast_as_a_whole_scores_images_of_float32(family):
    """What DeepSpeed makes of a float32 model; there is no autocast then."""
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
