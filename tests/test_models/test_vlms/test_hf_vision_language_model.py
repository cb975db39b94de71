import copy

import pytest
import tiny_vlms
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS

from mergemix_mm.models.vlms import HFVisionLanguageModel


def make(family='llava', seed=0, **kwargs):
    torch.manual_seed(seed)
    return HFVisionLanguageModel(config=tiny_vlms.tiny_config(family), **kwargs)


def batch_of(family='llava', texts=('what is it?', 'a b c'), padding_side='right', labels=True):
    """One image per text; the last four tokens of each text are its answer."""
    token = tiny_vlms.image_token(family)
    images = [tiny_vlms.random_image(40, 56, seed) for seed in range(len(texts))]
    batch = tiny_vlms.tiny_processor(family)(
        text=[f'{token}{text}' for text in texts],
        images=[[image] for image in images] if family == 'smolvlm' else images,
        padding=True,
        padding_side=padding_side,
        return_tensors='pt',
    )
    batch = dict(batch)
    if labels:
        behind = batch['attention_mask'].flip(1).cumsum(dim=1).flip(1)
        answer = (behind <= 4) & (batch['attention_mask'] == 1)
        batch['labels'] = batch['input_ids'].masked_fill(~answer, -100)
    return batch


def loss_of(vlm, batch):
    logits = vlm.head(vlm.hidden(batch))
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch['labels'][:, 1:].flatten())


def gradients(vlm):
    return {name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_hidden_and_head_give_the_librarys_logits(family):
    vlm = make(family).eval()
    batch = batch_of(family)
    extra = {}
    if family == 'paligemma':  # It makes its mask from token types, and that only beside labels.
        extra['token_type_ids'] = (batch['labels'] != -100).long().cummax(dim=1).values
    expected = vlm.model(**batch, **extra)
    assert torch.allclose(vlm.head(vlm.hidden(batch)), expected.logits, atol=1e-6)


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_generation_equals_the_librarys_and_one_by_one(family):
    vlm = make(family).eval()
    texts = ('what is it?', 'a b c')
    found = vlm.generate(batch_of(family, texts, 'right', labels=False), max_new_tokens=6)
    left = batch_of(family, texts, 'left', labels=False)
    expected = vlm.model.generate(**left, max_new_tokens=6, do_sample=False)[:, left['input_ids'].size(1) :]
    assert torch.equal(found.sequences, expected)
    for row, text in enumerate(texts):
        images = [tiny_vlms.random_image(40, 56, row)]
        alone = tiny_vlms.tiny_processor(family)(
            text=[f'{tiny_vlms.image_token(family)}{text}'],
            images=[images] if family == 'smolvlm' else images,
            return_tensors='pt',
        )
        one = vlm.generate(dict(alone), max_new_tokens=6)
        assert torch.equal(one.sequences[0], found.sequences[row, : one.sequences.size(1)])
        assert torch.allclose(one.logps[0], found.logps[row], atol=1e-4)


def test_generated_log_probabilities_are_those_of_a_forward_up_to_the_end_token():
    vlm = make().eval()
    batch = batch_of(labels=False)
    free = vlm.generate(batch, max_new_tokens=6, eos_token_id=None)
    # The second sample ends with its third token, the first one never does.
    end = int(free.sequences[1, 2])
    assert end not in [*free.sequences[0].tolist(), *free.sequences[1, :2].tolist()]
    found = vlm.generate(batch, max_new_tokens=6, eos_token_id=end)
    assert torch.equal(found.sequences[1, :3], free.sequences[1, :3])
    for row, length in enumerate([6, 3]):
        prompt = batch['input_ids'][row][batch['attention_mask'][row] == 1]
        answer = found.sequences[row, :length]
        ids = torch.cat([prompt, answer])[None]
        hidden = vlm.hidden(dict(input_ids=ids, pixel_values=batch['pixel_values'][row : row + 1]))
        logps = vlm.head(hidden)[0, -length - 1 : -1].log_softmax(dim=-1)
        assert torch.allclose(logps.gather(1, answer[:, None]).sum(), found.logps[row], atol=1e-4)


def test_several_answers_per_sample_are_refused():
    with pytest.raises(ValueError, match='num_beams'):
        make().generate(batch_of(), num_beams=2)


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
@pytest.mark.parametrize('part', ['vision_tower', 'projector', 'language_model'])
def test_only_trainable_parts_take_gradients_and_train_mode(family, part):
    vlm = make(family, trainable=[part])
    vlm.eval().train()
    loss_of(vlm, batch_of(family)).backward()
    paths = vlm.family.parts[part]
    inside = [path for other in vlm.family.parts.values() for path in other if other is not paths]
    inside = [path for path in inside if any(path.startswith(f'{outer}.') for outer in paths)]

    def is_part(name):
        return name.startswith(tuple(paths)) and not name.startswith(tuple(inside))

    found = gradients(vlm.model)
    assert found and all(is_part(name) for name in found)
    assert all(p.requires_grad == is_part(name) for name, p in vlm.model.named_parameters())
    modes = {name: module.training for name, module in vlm.model.named_modules() if name}
    assert all(is_part(name) for name, training in modes.items() if training)
    assert all(modes[path] for path in paths if path in modes)
    assert not any(module.training for module in vlm.eval().modules())


def test_an_unknown_part_is_refused_with_those_that_are_there():
    with pytest.raises(ValueError, match=r"trainable=\['vision'\].*'language_model', 'projector', 'vision_tower'"):
        make(trainable=['vision'])
    with pytest.raises(ValueError, match='must be a list'):
        make(trainable='projector')


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
@pytest.mark.parametrize('trainable', [['language_model', 'projector'], ['projector'], ['vision_tower']])
def test_gradient_checkpointing_changes_no_gradient(family, trainable):
    batch = batch_of(family)
    results = []
    for checkpointing in (False, True):
        vlm = make(family, trainable=trainable, gradient_checkpointing=checkpointing)
        loss_of(vlm, batch).backward()
        results.append(gradients(vlm))
    plain, checkpointed = results
    assert plain and plain.keys() == checkpointed.keys()
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)
    assert sum(float(grad.abs().sum()) for grad in plain.values()) > 0


@pytest.mark.parametrize('trainable', [['language_model'], ['projector']])
def test_gradient_checkpointing_runs_the_language_models_layers_twice_even_when_frozen(trainable):
    vlm = make(trainable=trainable, gradient_checkpointing=True)
    calls = []
    layer = vlm.family.language_model.layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(layer.mlp.training))
    loss_of(vlm, batch_of()).backward()
    assert calls == [trainable == ['language_model']] * 2


def test_lora_trains_adapters_of_the_language_model_and_the_projector():
    vlm = make(lora=dict(r=2, lora_alpha=4), gradient_checkpointing=True)
    # Adapters start at zero output; their second matrix gets the first gradient.
    loss_of(vlm, batch_of()).backward()
    found = [name for name, grad in gradients(vlm).items() if grad.abs().sum() > 0]
    assert {'lora' in name for name in found if 'projector' not in name} == {True}
    projector = [name for name in found if 'projector' in name]
    assert len(projector) == 4 and all('modules_to_save' in name for name in projector)
    adapted = {name.split('.lora_')[0] for name in found if 'lora_B' in name}
    assert len(adapted) == 2 * 7 and all('language_model' in name for name in adapted)
    frozen = [name for name, p in vlm.named_parameters() if not p.requires_grad]
    assert any('vision_tower' in name for name in frozen) and any('lm_head' in name for name in frozen)


def test_lora_takes_named_layers_of_the_language_model_only():
    vlm = make(lora=dict(r=2, target_modules=['q_proj']), trainable=['language_model'])
    adapted = [name for name, p in vlm.named_parameters() if p.requires_grad]
    assert len(adapted) == 2 * 2 and all('language_model' in name and 'q_proj' in name for name in adapted)
    with pytest.raises(ValueError, match=r"target_modules=\['qkv'\].*'q_proj'"):
        make(lora=dict(r=2, target_modules=['qkv']))
    with pytest.raises(ValueError, match="add 'language_model'"):
        make(lora=dict(r=2), trainable=['projector'])


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_a_saved_model_reloads_in_plain_transformers(tmp_path, family):
    from transformers import AutoModelForImageTextToText

    vlm = make(family).eval()
    batch = batch_of(family, labels=False)
    expected = vlm.model(**batch).logits
    vlm.save_pretrained(tmp_path / 'model')
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / 'model').eval()
    assert torch.equal(plain(**batch).logits, expected)
    again = HFVisionLanguageModel(pretrained=str(tmp_path / 'model')).eval()
    assert torch.equal(again.hidden(batch), vlm.hidden(batch))
    assert [path.name for path in tmp_path.iterdir()] == ['model']


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_lora_saves_adapters_only_and_peft_reloads_them(tmp_path, family):
    from peft import PeftModel
    from safetensors.torch import load_file

    vlm = make(family, lora=dict(r=2, init_lora_weights=False)).eval()
    projector = vlm.family.model.get_submodule(vlm.family.parts['projector'][0])
    with torch.no_grad():  # As if trained.
        [p.add_(0.1) for p in projector.modules_to_save.parameters()]
    batch = batch_of(family, labels=False)
    expected = vlm.family.model(**batch).logits
    vlm.save_pretrained(tmp_path / 'adapters')
    names = set(load_file(tmp_path / 'adapters' / 'adapter_model.safetensors'))
    inside = vlm.family.parts['projector'][0]
    assert {name for name in names if 'lora_' not in name} == {name for name in names if inside in name} != set()

    base = make(family).eval()
    plain = PeftModel.from_pretrained(base.model, tmp_path / 'adapters').eval()
    assert torch.allclose(plain(**batch).logits, expected, atol=1e-6)


def test_saving_replaces_a_folder_and_a_failure_leaves_it(tmp_path, monkeypatch):
    vlm = make(trainable=[])
    folder = tmp_path / 'model'
    folder.mkdir()
    (folder / 'old').touch()

    def fail(path, **kwargs):
        (path / 'half').touch()
        raise OSError('disk full')

    with monkeypatch.context() as patch, pytest.raises(OSError, match='disk full'):
        patch.setattr(vlm.model, 'save_pretrained', fail)
        vlm.save_pretrained(folder)
    assert [path.name for path in tmp_path.rglob('*')] == ['model', 'old']
    vlm.save_pretrained(folder)
    assert 'config.json' in {path.name for path in folder.iterdir()} and not (folder / 'old').exists()


def test_mmengines_initialisation_keeps_the_weights():
    vlm = make()
    before = copy.deepcopy(vlm.state_dict())
    vlm.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in vlm.state_dict().items())


def test_it_is_built_from_a_config_file_s_dict():
    config = ConfigDict(type='HFVisionLanguageModel', config=tiny_vlms.tiny_config('llava'), dtype='bfloat16')
    vlm = MODELS.build(config)
    assert vlm.model.config.text_config.vocab_size == tiny_vlms.VOCAB_SIZE
    assert vlm.hidden(batch_of()).dtype == torch.bfloat16


def test_a_copy_does_not_share_its_weights():
    vlm = make()
    twin = copy.deepcopy(vlm)
    assert twin.family.model is twin.model is not vlm.model


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(), 'exactly one'),
        (dict(pretrained='a', config={}), 'exactly one'),
        (dict(config=dict(model_type='blip')), "model_type='blip'.*'llava', 'llava_next'"),
        (dict(config=dict(hidden_size=3)), 'model_type=None'),
        (dict(config=dict(model_type='llava'), dtype='int8'), "dtype='int8'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HFVisionLanguageModel(**arguments)


@pytest.mark.parametrize('key', ['pretrained', 'config'])
def test_a_missing_folder_is_reported_with_its_key_and_the_way_out(tmp_path, key, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    missing = str(tmp_path / 'nothing')
    with pytest.raises(OSError, match=rf"{key}='{missing}'.*Set {key} to a folder"):
        HFVisionLanguageModel(**{key: missing})


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_hidden_states_do_not_depend_on_the_side_of_the_padding(family):
    vlm = make(family).eval()
    left, right = batch_of(family, padding_side='left'), batch_of(family, padding_side='right')
    found = [vlm.hidden(batch)[batch['attention_mask'].bool()] for batch in (left, right)]
    assert torch.allclose(*found, atol=2e-5)


def test_text_alone_has_no_canvas():
    vlm = make()
    batch = dict(input_ids=torch.randint(10, 200, (2, 5)))
    canvases, owners = vlm.canvases(batch)
    assert canvases == [] and owners.shape == (0,)
    assert vlm.with_canvases(batch, []) == batch
    assert vlm.hidden(batch).shape == (2, 5, 16)


def test_images_belong_to_the_samples_that_name_them():
    vlm = make()
    batch = dict(
        tiny_vlms.tiny_processor('llava')(
            text=['a<image>b<image>', 'none', '<image>'],
            images=[tiny_vlms.random_image(28, 28, seed) for seed in range(3)],
            padding=True,
            return_tensors='pt',
        )
    )
    assert vlm.canvases(batch)[1].tolist() == [0, 0, 2]
    with pytest.raises(ValueError, match='48 image tokens'):
        vlm.canvases(dict(batch, pixel_values=batch['pixel_values'][:0].expand(0, -1, -1, -1)))
