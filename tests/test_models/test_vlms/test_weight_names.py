"""What one version of transformers saved is loaded under the other; the files are those of write_weights.py."""

import json
from pathlib import Path

import pytest
import tiny_vlms
import torch
import transformers
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint

from mergemix_mm.models.backbones.encoder_branch import EncoderBranch
from mergemix_mm.models.vlms import HFVisionLanguageModel
from mergemix_mm.models.vlms.weight_names import adopt_names

DATA = Path(__file__).parents[2] / 'transformers_versions'
NAMES = json.loads((DATA / 'weight_names.json').read_text())
VLMS = ('llava', 'paligemma')
ENCODERS = [name for name in NAMES if name not in VLMS]
OLD = transformers.__version__.startswith('4')
SMALL = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=14, patch_size=7)


def encoder(name):
    config = name.replace('WithProjection', '').replace('Model', 'Config')
    mlp = dict(use_swiglu_ffn=True) if name == 'Dinov2Model' else dict(intermediate_size=16)
    model = getattr(transformers, name)(getattr(transformers, config)(**SMALL, **mlp, projection_dim=4))
    return EncoderBranch(model)


def randomise(model):
    for value in model.state_dict().values():
        value.copy_(torch.randn(value.shape))
    return model


def in_the_other_version(weights, pairs, prefix):
    """Weights of this version under the names of the other one, as transformers itself has translated them.

    Early releases of version 5 still have some of the names of version 4.
    """
    found = dict(weights)
    for old, new in pairs:
        both = [prefix + name for name in ([new] if isinstance(new, str) else new)]
        if prefix + old in weights:
            value = found.pop(prefix + old)
            found.update(zip(both, value.chunk(len(both))))
        else:
            found[prefix + old] = torch.cat([found.pop(name) for name in both]) if len(both) > 1 else found.pop(both[0])
    return found


@pytest.mark.parametrize('name', ENCODERS)
def test_an_encoder_loads_weights_under_the_names_of_the_other_version(name):
    model = randomise(encoder(name))
    weights = model.state_dict()
    other = in_the_other_version(weights, NAMES[name], 'encoder.')
    assert (other.keys() == weights.keys()) == all(old == new for old, new in NAMES[name])
    again = randomise(encoder(name))
    again.load_state_dict(other)
    assert all(torch.equal(value, weights[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize('lora', [None, dict(r=2)], ids=['whole', 'lora'])
@pytest.mark.parametrize('name', VLMS)
def test_a_vlm_loads_weights_under_the_names_of_the_other_version(name, lora):
    def build():
        trainable = ['vision_tower', 'projector', 'language_model']
        vlm = dict(type='HFVisionLanguageModel', config=tiny_vlms.tiny_config(name), trainable=trainable, lora=lora)
        return randomise(MODELS.build(dict(type='VLMTuner', vlm=vlm)))

    model = build()
    weights = model.state_dict()
    if lora is None:
        other = in_the_other_version(weights, NAMES[name], 'vlm.model.')
    else:  # A tower that trains as a whole is there twice, as it was and as it is.
        tower = 'vision_tower.{}.'
        here, there = ('vision_model.', '') if OLD else ('', 'vision_model.')
        other = {}
        for key, value in weights.items():
            for copy in ('modules_to_save.default', 'original_module'):
                key = key.replace(tower.format(copy) + here, tower.format(copy) + there)
            other[key] = value
    assert len(other.keys() - weights.keys()) == (39 if name == 'llava' else 37) * (1 if lora is None else 2)
    again = build()
    again.load_state_dict(other)
    assert all(torch.equal(value, weights[key]) for key, value in again.state_dict().items())


def inputs():
    ids = torch.arange(10, 34)[None].repeat(2, 1)
    ids[:, 3:19] = tiny_vlms.token_id('llava', '<image>')
    pixels = torch.linspace(-2, 2, 2 * 3 * 28 * 28).view(2, 3, 28, 28).sin()
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)


@torch.no_grad()
def logits(vlm):
    vlm = vlm.eval()
    return vlm.head(vlm.hidden(inputs()))[:, -1, ::50]


@pytest.mark.parametrize('version', [4, 5])
def test_a_checkpoint_of_either_version_gives_the_logits_that_it_gave_there(version):
    tuner = MODELS.build(
        dict(type='VLMTuner', vlm=dict(type='HFVisionLanguageModel', config=tiny_vlms.tiny_config('llava')))
    )
    load_checkpoint(tuner, str(DATA / f'transformers{version}' / 'llava.pth'), strict=True)
    expected = torch.tensor(json.loads((DATA / f'transformers{version}' / 'llava.json').read_text()))
    torch.testing.assert_close(logits(tuner.vlm), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize('version', [4, 5])
def test_a_folder_of_either_version_gives_the_logits_that_it_gave_there(version):
    folder = DATA / f'transformers{version}'
    vlm = HFVisionLanguageModel(pretrained=str(folder / 'llava'))
    expected = torch.tensor(json.loads((folder / 'llava.json').read_text()))
    torch.testing.assert_close(logits(vlm), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize('version', [4, 5])
def test_a_processor_of_either_version_is_read(version):
    found = transformers.AutoProcessor.from_pretrained(DATA / f'transformers{version}' / 'internvl')
    wanted = tiny_vlms.tiny_processor('internvl')
    given = dict(images=[tiny_vlms.random_image(40, 60, 0)], text=['<IMG_CONTEXT>what?'], return_tensors='pt')
    found, wanted = found(**given), wanted(**given)
    assert torch.equal(found['input_ids'], wanted['input_ids'])
    # Version 4 takes the slow image processor for the one of version 5, which rounds otherwise.
    torch.testing.assert_close(found['pixel_values'], wanted['pixel_values'], atol=0.02, rtol=0)


def test_what_is_missing_or_unknown_is_still_reported():
    model = encoder('CLIPVisionModel')
    weights = in_the_other_version(model.state_dict(), NAMES['CLIPVisionModel'], 'encoder.')
    lost = next(name for name in weights if 'class_embedding' in name)
    weights['encoder.more.weight'] = weights.pop(lost)
    with pytest.raises(RuntimeError, match=r'class_embedding(.|\n)*encoder\.more\.weight'):
        model.load_state_dict(weights)


def test_names_that_two_weights_could_have_are_left_alone():
    model = torch.nn.ModuleDict(dict(layer=torch.nn.ModuleList([torch.nn.Linear(2, 2)])))
    weights = {'model.layer.0.weight': torch.ones(2, 2), 'layers.0.weight': torch.ones(2, 2)}
    adopt_names(model, weights)
    assert weights.keys() == {'model.layer.0.weight', 'layers.0.weight'}
