"""Folders and checkpoints that either version of transformers wrote give under this one what they gave there.

The archives are those of tests/transformers_versions/write_models.py: of version 4, of an early and of a late 5.
"""

import json
import runpy
import shutil
import tarfile
from pathlib import Path

import pytest
import tiny_vlms
import torch
import transformers
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from safetensors.torch import load_file

from mergemix_mm.models.backbones.encoder_branch import EncoderBranch
from mergemix_mm.models.vlms import HFVisionLanguageModel, SphinxModel

DATA = Path(__file__).parents[1] / 'transformers_versions'
WRITER = runpy.run_path(str(DATA / 'write_models.py'))
ENCODERS = tuple(WRITER['ENCODERS'])
# The archives stay as they were written: families that came later are not in them.
with tarfile.open(DATA / 'transformers4.57.tar.xz') as _archive:
    _names = {Path(name).name for name in _archive.getnames()}
ALL_FAMILIES = tuple(family for family in tiny_vlms.ALL_FAMILIES if f'{family}.pth' in _names)
FAMILIES = tuple(family for family in tiny_vlms.FAMILIES if family in ALL_FAMILIES)
CHAT = Path(__file__).parents[2] / 'tools' / 'chat.py'


@pytest.fixture(scope='module', params=['4.57', '5.17', '5.24'])
def written(request, tmp_path_factory):
    """Folder of what one version wrote; ``said`` is what models were worth there."""
    folder = tmp_path_factory.mktemp(f'transformers{request.param}')
    with tarfile.open(DATA / f'transformers{request.param}.tar.xz') as archive:
        archive.extractall(folder, filter='data')
    return folder


@pytest.fixture(scope='module')
def said(written):
    return torch.load(written / 'said.pth', weights_only=True)


def check(vlm, batch, expected):
    """Our logits are those that the library said under the version that wrote the files."""
    vlm = vlm.float().eval()
    with torch.no_grad():
        found = vlm.head(vlm.hidden(vlm.prepare(batch)))[..., ::50]
    real = batch['attention_mask'].bool()
    assert expected[real].std() > 0.05
    torch.testing.assert_close(found[real], expected[real], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize('family', ALL_FAMILIES)
def test_a_checkpoint_is_read_whole_and_gives_the_librarys_logits(written, said, family):
    tuner = WRITER['tuner'](family)
    load_checkpoint(tuner, str(written / f'{family}.pth'), strict=True)
    check(tuner.vlm, said[family]['batch'], said[family]['logits'])


@pytest.mark.parametrize('family', ALL_FAMILIES)
def test_a_folder_is_read_whole_and_gives_the_librarys_logits(written, said, family):
    vlm = HFVisionLanguageModel(pretrained=str(written / family), dtype='bfloat16')
    assert {p.dtype for p in vlm.parameters()} == {torch.bfloat16}
    weights = torch.load(written / f'{family}.pth', weights_only=True)['state_dict']
    tuner = WRITER['tuner'](family, dtype='bfloat16')
    tuner.load_state_dict(weights)
    assert all(torch.equal(value, tuner.vlm.state_dict()[name]) for name, value in vlm.state_dict().items())
    # Again, because what is no weight would be rounded along: frequencies of positions.
    check(HFVisionLanguageModel(pretrained=str(written / family)), said[family]['batch'], said[family]['logits'])


@pytest.mark.parametrize('family', ['llava', 'qwen2_5_vl', 'emu3'])
def test_frequencies_of_positions_are_those_of_the_folder_under_the_name_of_either_version(
    written, said, tmp_path, family
):
    shutil.copytree(written / family, tmp_path / 'model')
    path = tmp_path / 'model' / 'config.json'
    content = json.loads(path.read_text())
    text = content['text_config']
    assert text['rope_theta'] == 500
    if 'rope_parameters' in text:  # Then plain transformers 5 does not write those of version 4.
        del text['rope_theta'], text['rope_scaling']
    path.write_text(json.dumps(content))
    given = dict(pretrained=str(tmp_path / 'model')), dict(config=content), dict(config=str(tmp_path / 'model'))
    weights = torch.load(written / f'{family}.pth', weights_only=True)['state_dict']
    for options in given:
        tuner = MODELS.build(dict(type='VLMTuner', vlm=dict(type='HFVisionLanguageModel', **options)))
        tuner.load_state_dict(weights)
        check(tuner.vlm, said[family]['batch'], said[family]['logits'])


@pytest.mark.skipif(not transformers.__version__.startswith('4'), reason='version 5 reads what it writes')
def test_frequencies_that_differ_from_layer_to_layer_are_refused():
    config = tiny_vlms.tiny_config('llava')
    config['text_config']['rope_parameters'] = dict(full_attention=dict(rope_theta=5.0, rope_type='default'))
    with pytest.raises(ValueError, match=r"rope_parameters=\{'full_attention'.* of LlamaConfig differ from layer"):
        HFVisionLanguageModel(config=config)


@pytest.mark.parametrize('family', ALL_FAMILIES)
def test_a_folder_of_this_package_is_read_by_plain_transformers(written, said, family):
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        written / family, dtype='float32', output_loading_info=True
    )
    assert not info['missing_keys'] and not info['unexpected_keys']
    batch = dict(said[family]['batch'])
    if family == 'qwen2_5_vl' and not transformers.__version__.startswith('4'):  # Its processor says them.
        batch['mm_token_type_ids'] = (batch['input_ids'] == model.config.image_token_id).int()
    else:
        batch.pop('mm_token_type_ids', None)
    found = WRITER['said'](model.eval(), family, batch)
    real = batch['attention_mask'].bool()
    torch.testing.assert_close(found[real], said[family]['logits'][real], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize('family', ALL_FAMILIES)
def test_a_processor_is_read(written, family):
    found, wanted = transformers.AutoProcessor.from_pretrained(written / family), tiny_vlms.tiny_processor(family)
    # Version 5 makes a tokenizer of Gemma's class into one of its words, which this one of bytes is not.
    if family != 'paligemma' or type(found.tokenizer).__name__ == type(wanted.tokenizer).__name__:
        assert found.tokenizer('what is it?')['input_ids'] == wanted.tokenizer('what is it?')['input_ids']
    token = tiny_vlms.image_token(family)
    assert found.tokenizer.convert_tokens_to_ids(token) == wanted.tokenizer.convert_tokens_to_ids(token)
    assert found.tokenizer.eos_token == wanted.tokenizer.eos_token
    assert found.image_token == wanted.image_token


@pytest.mark.parametrize('family', FAMILIES)
def test_a_processor_that_is_read_makes_the_same_of_images(written, family):
    if family == 'paligemma':
        pytest.skip('its tokenizer of bytes is not one of its class')
    found, wanted = transformers.AutoProcessor.from_pretrained(written / family), tiny_vlms.tiny_processor(family)
    found.num_image_tokens = getattr(wanted, 'num_image_tokens', None)  # Janus' class knows the released model's only.
    # Janus' class takes another colour for the borders of what is not square once it was saved.
    image, token = tiny_vlms.random_image(40, 40 if family == 'janus' else 60, 0), tiny_vlms.image_token(family)
    images = tiny_vlms.one_per_text(family, [image])
    found, wanted = (one(text=[f'{token}what?'], images=images, return_tensors='pt') for one in (found, wanted))
    assert torch.equal(found['input_ids'], wanted['input_ids'])
    # Fast and slow image processors, which versions take for one another, round otherwise.
    torch.testing.assert_close(found['pixel_values'], wanted['pixel_values'], atol=0.05, rtol=0)


@pytest.mark.parametrize('family', ALL_FAMILIES)
def test_a_folder_that_is_written_again_has_the_same_weights_under_the_same_names(written, tmp_path, family):
    HFVisionLanguageModel(pretrained=str(written / family), dtype='bfloat16').save_pretrained(tmp_path / 'again')
    again, before = (load_file(folder / 'model.safetensors') for folder in (tmp_path / 'again', written / family))
    assert again.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in again.items())


@pytest.mark.parametrize('family', ALL_FAMILIES)
def test_a_checkpoint_with_adapters_is_read_whole(written, said, family):
    tuner = WRITER['tuner'](family, trainable=WRITER['parts'](family), lora=dict(r=2))
    load_checkpoint(tuner, str(written / f'{family}-lora.pth'), strict=True)
    check(tuner.vlm, said[family]['batch'], said[family]['lora_logits'])


@pytest.mark.parametrize('family', ALL_FAMILIES)
def test_a_folder_of_adapters_is_added_to_its_model(written, said, family):
    chat = runpy.run_path(str(CHAT))
    vlm = chat['load_model'](str(written / family), str(written / f'{family}-lora'), 'float32', 'cpu', False)
    check(vlm, said[family]['batch'], said[family]['lora_on_base_logits'])


@pytest.mark.parametrize('kind', ['checkpoint', 'folder'])
def test_sphinx_is_read_whole(written, said, kind):
    if kind == 'folder':
        vlm = SphinxModel(pretrained=str(written / 'sphinx'))
    else:
        tuner = MODELS.build(dict(type='VLMTuner', vlm=WRITER['sphinx']()))
        load_checkpoint(tuner, str(written / 'sphinx.pth'), strict=True)
        vlm = tuner.vlm
    check(vlm, said['sphinx']['batch'], said['sphinx']['logits'])


@pytest.mark.parametrize('kind', ['checkpoint', 'folder'])
@pytest.mark.parametrize('name', ENCODERS)
def test_a_vision_encoder_is_read_whole(written, said, name, kind):
    config = dict(type=f'transformers.{name}.from_pretrained', pretrained_model_name_or_path=str(written / name))
    if kind == 'folder':
        branch = EncoderBranch(config).eval()
    else:
        branch = EncoderBranch(WRITER['encoder'](name)).eval()
        branch.load_state_dict(torch.load(written / f'{name}.pth', weights_only=True))
    with torch.no_grad():
        states = branch.encoder(pixel_values=said[name]['pixels']).last_hidden_state
        torch.testing.assert_close(states, said[name]['states'], atol=1e-5, rtol=1e-5)
        if 'map' in said[name]:
            features = branch(said[name]['pixels']).features
            torch.testing.assert_close(features, said[name]['map'], atol=1e-5, rtol=1e-5)
