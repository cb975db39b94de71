"""What the config of a stranger's folder may build, tried with folders that would run code."""

import json
import os
import pickle
import sys

import pytest
import tiny_sphinx
import torch
from mmengine.registry import MODELS
from transformers import CLIPConfig, CLIPVisionConfig

from mergemix_mm.models.allowed_parts import check_adapter, check_attention, check_parts
from mergemix_mm.models.vlms import HFVisionLanguageModel, SphinxModel

VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=16),
    img_size=28,
    patch_size=14,
    out_type='raw',
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that `SphinxModel.save_pretrained` wrote."""
    monkeypatch.chdir(tmp_path)
    config = tiny_sphinx.sphinx_config()
    config['backbone'] = dict(type='MultiBackbone', encoders=[dict(encoder=VIT, frozen=False)])
    MODELS.build(config).save_pretrained(tmp_path / 'model')
    return tmp_path / 'model'


def change(folder, key, value):
    path = folder / 'config.json'
    content = part = json.loads(path.read_text())
    *way, last = key.split('.')
    for name in way:
        part = part[int(name) if name.isdigit() else name]
    part[last] = value
    path.write_text(json.dumps(content))


COMMAND = dict(type='os.system', command='touch ran')


@pytest.mark.parametrize(
    'key, value, found',
    [
        ('backbone', COMMAND, "backbone.type='os.system'"),
        ('neck', COMMAND, "neck.type='os.system'"),
        ('backbone.encoders.0.encoder', COMMAND, "backbone.encoders.0.encoder.type='os.system'"),
        ('backbone.encoders.0.encoder', dict(COMMAND, model_type='clip'), "encoder.type='os.system'"),
        ('backbone.encoders.0.encoder.norm_cfg', COMMAND, "encoder.norm_cfg.type='os.system'"),
        ('backbone.encoders.0.encoder.layer_cfgs', [dict(act_cfg=COMMAND)], "layer_cfgs.0.act_cfg.type='os.system'"),
        ('backbone.init_cfg', [dict(type='subprocess.run', args='touch ran')], "init_cfg.0.type='subprocess.run'"),
        ('backbone.encoders.0.encoder.config', dict(model_type='clip', a=COMMAND), "config.a.type='os.system'"),
        ('neck.norm_cfg', dict(type='mmengine.os.system', command='touch ran'), "type='mmengine.os.system'"),
        ('neck.norm_cfg', dict(type='torch.load', f='evil.pth'), "type='torch.load'"),
        ('neck.norm_cfg', dict(type='builtins.eval', source='1'), "type='builtins.eval'"),
        # A module is imported by its bare name, and a scope by the one before the dot.
        ('neck', dict(type='evil_module'), "neck.type='evil_module'"),
        ('neck', dict(type='evil_module.LN'), "neck.type='evil_module.LN'"),
        ('neck._scope_', 'evil_module', "neck._scope_='evil_module'"),
        ('neck.type', ['os.system'], 'neck.type='),
        # Functions of the allowed libraries that are no constructors of models.
        ('neck', dict(type='transformers.pipeline', task='x'), "type='transformers.pipeline'"),
        ('neck', dict(type='transformers.utils.import_utils.os.system', command='touch ran'), 'os.system'),
        ('neck', dict(type='timm.models.load_checkpoint', checkpoint_path='evil.pth'), 'timm.models.load_checkpoint'),
        ('neck', dict(type='Llava'), "neck.type='Llava'"),
        # Arguments that run code.
        ('backbone.encoders.0.encoder', dict(type='transformers.AutoModel.from_pretrained', trust_remote_code=True,
                                             pretrained_model_name_or_path='x'), 'trust_remote_code=True'),
        ('backbone.encoders.0.encoder', dict(type='transformers.AutoModel.from_pretrained', weights_only=False,
                                             pretrained_model_name_or_path='x'), 'weights_only=False'),
        ('backbone.encoders.0.encoder', dict(type='transformers.CLIPVisionModel.from_pretrained',
                                             attn_implementation='evil/kernel'), 'evil/kernel'),
        ('backbone.encoders.0.encoder', dict(type='transformers.AutoModel.from_config', config=dict(
            model_type='clip_vision_model', auto_map=dict(AutoModel='evil.Model'))), 'config.auto_map='),
        ('backbone.encoders.0.encoder', dict(type='timm.create_model', model_name='hf-hub:evil/x'), 'hf-hub:evil/x'),
        ('backbone.encoders.0.encoder', dict(type='timm.create_model', model_name='vit_tiny_patch16_224',
                                             checkpoint_path='evil.pth'), "checkpoint_path='evil.pth'"),
        ('backbone.encoders.0.encoder', dict(type='TIMMBackbone', model_name='resnet18',
                                             pretrained_cfg=dict(file='evil.pth')), 'pretrained_cfg='),
        ('backbone.encoders.0.encoder', dict(type='timm.create_model', model_name='resnet18',
                                             pretrained_cfg_overlay=dict(file='x.pth', custom_load=True)), 'overlay='),
        ('language_model', dict(pretrained='x', trust_remote_code=True), 'language_model'),
        ('trust_remote_code', True, 'trust_remote_code'),
        ('grid', COMMAND, 'grid='),
    ],
)  # fmt: skip
def test_a_folder_that_would_run_code_is_refused_with_key_and_flag(folder, monkeypatch, key, value, found):
    (folder.parent / 'evil_module.py').write_text("open('ran', 'w')")
    monkeypatch.syspath_prepend(folder.parent)
    change(folder, key, value)
    with pytest.raises(ValueError, match='config.json') as caught:
        SphinxModel(pretrained=str(folder))
    message = str(caught.value)
    assert found in message and '\n' not in message and len(message) < 700
    assert 'trust_remote_code=True' in message or 'unknown keys' in message or 'no integer' in message
    assert not (folder.parent / 'ran').exists() and 'evil_module' not in sys.modules


def test_what_is_nested_without_end_is_refused():
    part = deepest = {}
    for _ in range(400):
        deepest['a'] = deepest = {}
    with pytest.raises(ValueError, match='nested more than 50 deep'):
        check_parts(dict(backbone=part), 'config.json')


def test_a_damaged_config_is_named(folder):
    for text in ('[' * 100000, '{"model_type": "sphinx"', '\ud800'.encode('utf-8', 'surrogatepass')):
        (folder / 'config.json').write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=r'config\.json is no JSON file'):
            SphinxModel(pretrained=str(folder))


def test_models_of_all_libraries_with_plain_arguments_are_built(folder):
    vision = CLIPVisionConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                              image_size=28, patch_size=14).to_dict()  # fmt: skip
    timm = dict(type='timm.create_model', model_name='vit_tiny_patch16_224', img_size=28, depth=1, embed_dim=8,
                num_heads=2, global_pool='', num_classes=0)  # fmt: skip
    config = tiny_sphinx.sphinx_config()
    clip = dict(type='transformers.CLIPVisionModel', config=dict(vision, rope_scaling=dict(type='linear', factor=1.0)))
    encoders = [dict(encoder=one, frozen=False, input_size=28) for one in (clip, timm, VIT)]
    config['backbone'] = dict(type='MultiBackbone', encoders=encoders)
    config['neck']['in_channels'] = [8, 8, 8]
    MODELS.build(config).save_pretrained(folder)
    found = SphinxModel(pretrained=str(folder)).family.model.vision.backbone.branches
    assert [type(branch.encoder).__module__.split('.')[0] for branch in found] == ['transformers', 'timm', 'mmpretrain']
    check_parts(
        dict(a=dict(type='transformers.CLIPVisionModel.from_pretrained', pretrained_model_name_or_path='a/b')), 'x'
    )
    check_parts(dict(a=dict(type='mmpretrain.ConvNeXt', init_cfg=dict(type='Pretrained', checkpoint='a.pth'))), 'x')


def test_the_flag_allows_everything(folder):
    change(folder, 'neck', dict(type='os.mkdir', path='ran'))
    with pytest.raises(Exception):  # It is no neck.
        SphinxModel(pretrained=str(folder), trust_remote_code=True)
    assert (folder.parent / 'ran').is_dir()


class Dangerous:
    def __reduce__(self):
        return os.mkdir, ('ran',)


def test_weights_that_a_folder_names_run_nothing(folder):
    torch.save(dict(state_dict={}, extra=Dangerous()), folder / 'evil.pth')
    change(folder, 'backbone.encoders.0.frozen', True)
    init = dict(type='Pretrained', checkpoint=str(folder / 'evil.pth'))
    change(folder, 'backbone.encoders.0.encoder.init_cfg', init)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / 'vision.safetensors')
    kept = {name: value for name, value in weights.items() if 'branches.0.' not in name}
    save_file(kept, folder / 'vision.safetensors')
    vlm = SphinxModel(pretrained=str(folder))
    with pytest.raises(ValueError, match=r'evil\.pth .*refers to .*mkdir.*trust_remote_code=True'):
        vlm.init_weights()
    assert not (folder.parent / 'ran').exists()


def test_pickled_weights_in_a_language_models_folder_run_nothing(folder):
    for file in (folder / 'language_model').glob('*.safetensors'):
        file.unlink()
    with open(folder / 'language_model' / 'pytorch_model.bin', 'wb') as file:
        pickle.dump(Dangerous(), file)
    with pytest.raises(OSError):
        SphinxModel(pretrained=str(folder))
    assert not (folder.parent / 'ran').exists()


def test_code_beside_the_weights_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = dict(AutoConfig='evil.Config', AutoModelForImageTextToText='evil.Model', AutoModelForCausalLM='evil.Model')
    (tmp_path / 'evil.py').write_text("open('ran', 'w')")
    (tmp_path / 'config.json').write_text(json.dumps(dict(model_type='evil', auto_map=code)))
    for build in (
        lambda: HFVisionLanguageModel(pretrained=str(tmp_path)),
        lambda: SphinxModel(language_model=dict(pretrained=str(tmp_path)), pretrained=None),
    ):
        with pytest.raises((OSError, ValueError)):
            build()
    assert not (tmp_path / 'ran').exists()


def test_a_kernel_of_the_hub_that_a_config_names_is_refused(monkeypatch):
    config = CLIPConfig()
    check_attention(config, 'folder')
    config.vision_config._attn_implementation = 'evil/kernel'
    with pytest.raises(ValueError, match=r"vision_config\.attn_implementation='evil/kernel'.*--trust-remote-code"):
        check_attention(config, 'folder')
    monkeypatch.setattr('transformers.AutoConfig.from_pretrained', lambda *_, **__: config)
    config.model_type = 'llava'
    for key in ('pretrained', 'config'):
        with pytest.raises(ValueError, match='evil/kernel'):
            HFVisionLanguageModel(**{key: 'folder'})


def test_adapters_that_import_a_module_are_refused(tmp_path):
    content = dict(peft_type='LORA', megatron_config=dict(a=1), megatron_core='evil_module')
    (tmp_path / 'adapter_config.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"imports the module 'evil_module'.*--trust-remote-code"):
        check_adapter(tmp_path)


@pytest.mark.parametrize(
    'content',
    [
        '[' * 100000,
        '[]',
        '{"model_type": 5}',
        '{"model_type": "llava", "vision_config": [1]}',
        '{"model_type": "llava", "text_config": 7}',
        '\\x00',
        '{"model_type": "\\u001b[2J"}',
    ],
)
def test_damaged_configs_of_transformers_are_errors_of_one_line(tmp_path, content):
    (tmp_path / 'config.json').write_text(content)
    for key in ('pretrained', 'config'):
        with pytest.raises((OSError, ValueError)) as caught:
            HFVisionLanguageModel(**{key: str(tmp_path)})
        message = str(caught.value)
        assert '\n' not in message and '\x1b' not in message and len(message) < 1500


def test_damaged_weights_of_a_folder_are_named(folder):
    for content in (b'no', b'\xff' * 100):
        (folder / 'vision.safetensors').write_bytes(content)
        with pytest.raises(ValueError, match=r'vision\.safetensors is damaged'):
            SphinxModel(pretrained=str(folder))
    for file in (folder / 'language_model').glob('*.safetensors'):
        file.write_bytes(b'no')
    with pytest.raises(OSError, match='language_model') as caught:
        SphinxModel(pretrained=str(folder))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'config',
    [
        dict(model_type='timm_wrapper', architecture='local-dir:/somewhere'),
        dict(model_type='timm_backbone', backbone='hf-hub:somebody/model'),
        dict(model_type='detr', backbone='local-dir:/somewhere', use_timm_backbone=True),
    ],
)
def test_a_config_of_transformers_names_no_place_to_load_a_model_of_timm_from(config):
    part = dict(type='transformers.AutoModel.from_config', config=config)
    with pytest.raises(ValueError, match=r"backbone\.config\.\w+='(local-dir|hf-hub):.*names a place to load"):
        check_parts(dict(backbone=part), 'folder')
