"""Tables of parameters: of one config by parts, of several in rows; what is said where a hub config is missing."""

import json

import pytest

from mergemix_mm.engine.launch import LaunchError

LLAMA = dict(
    model_type='llama',
    vocab_size=50,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
LLAVA = dict(
    model_type='llava',
    image_token_index=4,
    vision_config=dict(
        model_type='clip_vision_model',
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
    ),
    text_config=LLAMA,
)
CONFIG = """
custom_imports = dict(imports=['mergemix_mm'])
model = dict(
    type='VLMTuner',
    vlm=dict(type='HFVisionLanguageModel', pretrained='nobody/llava', dtype='bfloat16', trainable=['projector']),
    processor=dict(type='transformers.AutoProcessor.from_pretrained', pretrained_model_name_or_path='nobody/llava'),
)
"""
# Two matrices with biases, 8 to 16 and 16 to 16.
PROJECTOR = 8 * 16 + 16 + 16 * 16 + 16
# Embeddings and head; queries, keys, values, output; three matrices; two norms a layer, and the last.
LANGUAGE_MODEL = 2 * 50 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16) + 16


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """A config and the config.json of its model; the hub is not asked."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    config, hub = tmp_path / 'config.py', tmp_path / 'config.json'
    config.write_text(CONFIG)
    hub.write_text(json.dumps(LLAVA))
    return config, hub


@pytest.fixture
def tool(load_tool):
    return load_tool('analysis_tools/count_parameters')


def rows(text):
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('|')]


@pytest.mark.parametrize('by_name', [False, True])
def test_a_config_gives_its_parts_their_trained_parameters_and_the_tokens_of_an_image(paths, tool, capsys, by_name):
    config, hub = paths
    tool.main([str(config), '--hub-config', f'nobody/llava={hub}' if by_name else str(hub)])
    text = capsys.readouterr().out
    parts = {part: (dtype, found, trained) for part, dtype, found, trained in rows(text)[2:]}
    assert parts['projector'] == ('float32', f'{PROJECTOR:,}', f'{PROJECTOR:,}')
    assert parts['language_model'] == ('bfloat16', f'{LANGUAGE_MODEL:,}', '0')
    assert parts['all'][2] == f'{PROJECTOR:,}'
    assert 'image tokens: 16' in text


def test_several_configs_give_a_row_each(paths, tool, capsys, tmp_path):
    config, _ = paths
    names = tmp_path / 'names.json'
    names.write_text(json.dumps({'nobody/llava': LLAVA}))
    other = tmp_path / 'other.py'
    other.write_text(config.read_text().replace("['projector']", "['language_model']"))
    tool.main([str(config), str(other), '--hub-config', str(names)])
    _, _, first, second = rows(capsys.readouterr().out)
    assert (first[0], first[2], first[4]) == ('config', f'{PROJECTOR:,}', '16')
    assert (second[0], second[1], second[2]) == ('other', first[1], f'{LANGUAGE_MODEL:,}')


def test_options_of_the_command_line_change_the_config(paths, tool, capsys):
    config, hub = paths
    tool.main([str(config), '--hub-config', str(hub), '--cfg-options', 'model.vlm.trainable=[vision_tower]'])
    parts = {row[0]: row for row in rows(capsys.readouterr().out)}
    assert parts['projector'][3] == '0' and parts['vision_tower'][3] == parts['all'][3] != '0'


@pytest.mark.parametrize(
    'arguments, content, match',
    [
        ([], None, 'nobody/llava.*--hub-config nobody/llava=FILE.json'),
        (['--hub-config', 'missing.json'], None, 'missing.json is neither a folder'),
        (['--hub-config', '{file}'], '[1]', 'file.json is not the config of a model: .1'),
        (['--hub-config', '{file}'], '{', 'file.json is not a JSON file'),
        (['--hub-config', '{file}'], '{"a": {"hidden_size": 1}}', "file.json: a .* no 'model_type'"),
        (['--hub-config', '{file}'], '{"model_type": "nonsense"}', 'nonsense'),
        (['--hub-config', '{file}'], '{"model_type": "llama"}', "model_type='llama'"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(paths, tool, tmp_path, arguments, content, match):
    file = tmp_path / 'file.json'
    if content is not None:
        file.write_text(content)
    with pytest.raises(LaunchError, match=match) as found:
        tool.main([str(paths[0]), *(argument.replace('{file}', str(file)) for argument in arguments)])
    assert '\n' not in str(found.value)
