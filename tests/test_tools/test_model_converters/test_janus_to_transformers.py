import json
import re
from pathlib import Path

import pytest
import tiny_vlms
import torch
from safetensors.torch import load_file, save_file

from mergemix_mm.models.vlms import HFVisionLanguageModel


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('model_converters/janus_to_transformers')


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """A tiny random Janus in transformers' format with its processor: the folder, and its weights."""
    folder = tmp_path_factory.mktemp('tiny')
    config = tiny_vlms.tiny_config('janus')
    config['vision_config']['depth'] = config['vq_config']['num_hidden_layers'] = 3
    # Levels of different widths, so that there are shortcuts.
    config['vq_config']['channel_multiplier'] = [1, 2]
    torch.manual_seed(0)
    vlm = HFVisionLanguageModel(config=config)
    with torch.no_grad():  # Biases begin as zeros, norms as ones: neither would tell one from another.
        for parameter in vlm.parameters():
            parameter.normal_()
    vlm.save_pretrained(folder)
    tiny_vlms.tiny_processor('janus').save_pretrained(folder)
    return folder, dict(vlm.model.state_dict())


# From transformers' names to DeepSeek's, word by word: the tool's direction the other way round, in other terms.
WORDS = [
    ('model.vision_model.embeddings.patch_embedding.', 'vision_model.vision_tower.patch_embed.proj.'),
    ('model.vision_model.embeddings.position_embedding.weight', 'vision_model.vision_tower.pos_embed'),
    ('model.vision_model.post_layernorm.', 'vision_model.vision_tower.norm.'),
    ('model.vision_model.encoder.layers.', 'vision_model.vision_tower.blocks.'),
    ('.layer_norm', '.norm'),
    ('.projection_layer.', '.proj.'),
    ('model.vqmodel.', 'gen_vision_model.'),
    ('.down.', '.conv_blocks.'),
    ('.up.', '.conv_blocks.'),
    ('.block.', '.res.'),
    ('.mid.block_1.', '.mid.0.'),
    ('.mid.attn_1.', '.mid.1.'),
    ('.mid.block_2.', '.mid.2.'),
    ('model.generation_aligner.', 'gen_aligner.layers.'),
    ('model.aligner.', 'aligner.layers.'),
    ('.layers.fc1.', '.layers.0.'),
    ('.layers.hidden_layers.0.', '.layers.2.'),
    ('.layers.hidden_layers.1.', '.layers.4.'),
    ('model.generation_head.proj_out.', 'gen_head.output_mlp_projector.'),
    ('model.generation_head.', 'gen_head.'),
    ('model.generation_embeddings.', 'gen_embed.'),
    ('model.language_model.', 'language_model.model.'),
]


def to_deepseek(weights):
    """A state dict of transformers' Janus in the layout of the release."""
    result = {}
    for name, value in weights.items():
        if re.search(r'vision_model.*\.[kv]_proj', name):
            continue
        if re.search(r'vision_model.*\.q_proj', name):
            value = torch.cat([weights[name.replace('.q_', f'.{part}_')] for part in 'qkv'])
            name = name.replace('self_attn.q_proj', 'attn.qkv')
        if name.startswith('model.vision_model.'):
            name = name.replace('.self_attn.', '.attn.')
        if name == 'lm_head.weight':
            name = 'language_model.lm_head.weight'
        for new, old in WORDS:
            name = name.replace(new, old)
        result[name] = value[None] if name.endswith('pos_embed') else value
    result['gen_vision_model.quantize.codebook_used'] = torch.zeros(65536)
    result['vision_model.vision_tower.attn_pool.latent'] = torch.zeros(1, 1, 16)
    return {name: value.clone() for name, value in result.items()}


def write(folder, kind, weights):
    """The checkpoint as one of the files it may come in; what IN shall name."""
    folder.mkdir()
    if kind == 'safetensors':
        save_file(weights, folder / 'model.safetensors')
    elif kind == 'sharded':
        names = list(weights)
        shards = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
        for file, chosen in shards.items():
            save_file({name: weights[name] for name in chosen}, folder / file)
        weight_map = {name: file for file, chosen in shards.items() for name in chosen}
        (folder / 'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=weight_map)))
        torch.save(dict(old=torch.zeros(1)), folder / 'training_args.bin')
    elif kind == 'bin':
        torch.save(weights, folder / 'pytorch_model.bin')
    elif kind == 'wrapped':
        torch.save(dict(module={f'module.{name}': value for name, value in weights.items()}, step=3), folder / 'x.pt')
        return folder / 'x.pt'
    return folder


@pytest.mark.parametrize('kind', ['safetensors', 'sharded', 'bin', 'wrapped'])
def test_weights_come_back_bit_by_bit(tool, tiny, tmp_path, capsys, kind):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder, weights = tiny
    source = write(tmp_path / 'release', kind, to_deepseek(weights))
    tool.main([str(source), str(tmp_path / 'out'), '--like', str(folder)])
    assert capsys.readouterr().out == f'Janus of {len(weights)} tensors written to {tmp_path / "out"}\n'
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / 'out', output_loading_info=True)
    assert not info['missing_keys'] and not info['unexpected_keys']
    found = model.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    processor = AutoProcessor.from_pretrained(tmp_path / 'out')
    assert model.generation_config.generation_kwargs['boi_token_id'] == processor.tokenizer.convert_tokens_to_ids(
        '<begin_of_image>'
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'release']


def test_precision_of_the_checkpoint_is_kept(tool, tiny, tmp_path):
    folder, weights = tiny
    released = {name: value.bfloat16() for name, value in to_deepseek(weights).items()}
    tool.main([str(write(tmp_path / 'release', 'bin', released)), str(tmp_path / 'out'), '--like', str(folder)])
    assert {value.dtype for value in load_file(tmp_path / 'out/model.safetensors').values()} == {torch.bfloat16}
    assert json.loads((tmp_path / 'out/config.json').read_text())['dtype'] == 'bfloat16'


def test_a_checkpoint_of_two_precisions_gets_that_of_its_head(tool, tiny, tmp_path):
    folder, weights = tiny
    released = {name: value if 'vision' in name else value.bfloat16() for name, value in to_deepseek(weights).items()}
    assert {value.dtype for value in released.values()} == {torch.float32, torch.bfloat16}
    tool.main([str(write(tmp_path / 'release', 'bin', released)), str(tmp_path / 'out'), '--like', str(folder)])
    assert {value.dtype for value in load_file(tmp_path / 'out/model.safetensors').values()} == {torch.bfloat16}
    content = json.loads((tmp_path / 'out/config.json').read_text())
    parts = (content, content['text_config'], content['vision_config'])
    assert {part['dtype'] for part in parts if 'dtype' in part} == {'bfloat16'} == {content['dtype']}


def test_shards_hold_all_weights_and_no_more_than_their_limit(tool, tiny, tmp_path):
    _, weights = tiny
    released = to_deepseek(weights)
    with tool.Weights([write(tmp_path / 'release', 'safetensors', released) / 'model.safetensors']) as source:
        pieces = tool.plan(source.shapes, {name: value.shape for name, value in weights.items()})
        (tmp_path / 'out').mkdir()
        tool.write_weights(source, pieces, tmp_path / 'out', shard_bytes=200_000)
    index = json.loads((tmp_path / 'out/model.safetensors.index.json').read_text())
    shards = {path.name: load_file(path) for path in (tmp_path / 'out').glob('*.safetensors')}
    assert len(shards) > 2 and set(index['weight_map'].values()) == set(shards)
    assert all(sum(value.nbytes for value in shard.values()) <= 200_000 for shard in shards.values())
    assert index['metadata']['total_size'] == sum(value.nbytes for value in weights.values())
    assert all(torch.equal(shards[index['weight_map'][name]][name], value) for name, value in weights.items())


def test_every_name_that_does_not_match_is_reported_at_once(tool, tiny, tmp_path):
    folder, weights = tiny
    released = to_deepseek(weights)
    del released['gen_embed.weight'], released['vision_model.vision_tower.blocks.1.attn.qkv.bias']
    released['language_model.model.layers.7.mlp.up_proj.weight'] = torch.zeros(2)
    released['gen_aligner.layers.1.weight'] = torch.zeros(2)
    released['aligner.layers.0.bias'] = torch.zeros(5)
    source = write(tmp_path / 'release', 'safetensors', released)
    with pytest.raises(SystemExit) as stopped:
        tool.main([str(source), str(tmp_path / 'out'), '--like', str(folder)])
    attention = 'model.vision_model.encoder.layers.1.self_attn'
    for name in (
        'model.generation_embeddings.weight',
        *(f'{attention}.{part}_proj.bias' for part in 'qkv'),
        'language_model.model.layers.7.mlp.up_proj.weight',
        'gen_aligner.layers.1.weight',
        'aligner.layers.0.bias: [5] does not make model.aligner.fc1.bias of [16]',
    ):
        assert f'  {name}\n' in f'{stopped.value}\n'
    assert '2 names that the model' in str(stopped.value) and '4 weights of the model' in str(stopped.value)
    assert [path.name for path in tmp_path.iterdir()] == ['release']


def test_a_missing_shard_is_named(tool, tiny, tmp_path):
    folder, weights = tiny
    source = write(tmp_path / 'release', 'sharded', to_deepseek(weights))
    (source / 'b.safetensors').unlink()
    with pytest.raises(SystemExit, match=r'shards that are not there: b\.safetensors'):
        tool.main([str(source), str(tmp_path / 'out'), '--like', str(folder)])


def test_files_with_code_are_not_loaded(tool, tiny, tmp_path):
    torch.save(dict(weights=Path('x')), tmp_path / 'x.pt')
    with pytest.raises(SystemExit, match='holds more than weights'):
        tool.main([str(tmp_path / 'x.pt'), str(tmp_path / 'out'), '--like', str(tiny[0])])


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'has no config.json.*--like deepseek-community'),
        (dict(model_type='janus'), "model_type='janus', not 'multi_modality'"),
        (dict(model_type='multi_modality'), "'vision_config' is missing"),
    ],
)
def test_without_a_known_config_the_way_out_is_named(tool, tiny, tmp_path, content, message):
    source = write(tmp_path / 'release', 'safetensors', to_deepseek(tiny[1]))
    if content is not None:
        (source / 'config.json').write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=message):
        tool.main([str(source), str(tmp_path / 'out')])


def release_config(width, **language):
    """config.json of Janus-Pro, as DeepSeek wrote it."""
    return dict(
        model_type='multi_modality',
        vision_config=dict(
            cls='CLIPVisionTower',
            params=dict(image_size=384, model_name='siglip_large_patch16_384', select_feature='same', select_layer=-1),
        ),
        aligner_config=dict(params=dict(depth=2, input_dim=1024, n_embed=width, projector_type='mlp_gelu')),
        gen_vision_config=dict(cls='VQ-16', params=dict(image_token_size=16384, n_embed=8)),
        gen_aligner_config=dict(params=dict(depth=2, input_dim=8, n_embed=width, projector_type='mlp_gelu')),
        gen_head_config=dict(params=dict(image_token_embed=width, image_token_size=16384, n_embed=width)),
        language_config=dict(max_position_embeddings=16384, model_type='llama', vocab_size=102400) | language,
    )


def test_config_of_janus_pro_is_translated(tool):
    # The 7B names what differs from Llama-7B alone.
    config = tool.translate_config(release_config(4096, num_hidden_layers=30, _attn_implementation='flash_attention_2'))
    shapes = tool.wanted_shapes(config)
    assert shapes['model.vision_model.embeddings.patch_embedding.weight'] == (1024, 3, 16, 16)
    assert shapes['model.vision_model.embeddings.position_embedding.weight'] == (576, 1024)
    assert shapes['model.aligner.hidden_layers.0.weight'] == (4096, 4096)
    assert shapes['model.generation_head.vision_head.weight'] == (16384, 4096)
    assert shapes['model.vqmodel.encoder.conv_out.weight'] == (256, 512, 3, 3)
    assert shapes['model.language_model.layers.29.mlp.up_proj.weight'] == (11008, 4096)
    assert 'model.language_model.layers.30.mlp.up_proj.weight' not in shapes
    assert config.vision_config.num_attention_heads == 16 and config.vision_config.num_hidden_layers == 24
    assert config.text_config._attn_implementation != 'flash_attention_2'


def test_processor_of_the_release_is_translated(tool, tmp_path):
    from transformers import JanusImageProcessor

    tokenizer = tiny_vlms.tiny_tokenizer('janus')
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    statistics = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, min_size=7)
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(dict(statistics, image_size=28, do_normalize=True)))
    found = tool.translate_processor(tmp_path)
    image = tiny_vlms.random_image(30, 40, 0)
    expected = JanusImageProcessor(size=dict(height=28, width=28), **statistics)(image, return_tensors='pt')
    assert torch.equal(found(text='<image_placeholder>Q', images=[image])['pixel_values'], expected['pixel_values'])
    vocabulary = tiny_vlms.tiny_tokenizer('janus').get_vocab()
    assert found.tokenizer.get_vocab() == vocabulary
    assert found.tokenizer.pad_token_id == vocabulary['<｜▁pad▁｜>']
    assert '{%- generation -%}' in found.chat_template
