"""What is no checkpoint ends every converter in one line that names the argument and the file, and writes nothing."""

import json

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import save_file


def write_all(folder):
    """Files that are no checkpoints, by what is wrong with them."""
    whole = dict(state_dict={'backbone.a': torch.ones(300), 'vlm.a': torch.ones(300)})
    contents = {
        'list': [1, 2],
        'tensor': torch.ones(2),
        'number': 3,
        'none': None,
        'nothing': {},
        'list inside': dict(state_dict=[torch.ones(2)]),
        'nothing inside': dict(state_dict={}),
        'number inside': dict(state_dict={'backbone.a': 3, 'vlm.a': 3}),
        'numbers for names': {0: torch.ones(2)},
    }
    files = {}
    for name, content in contents.items():
        files[name] = folder / f'{name.replace(" ", "_")}.pth'
        torch.save(content, files[name])
    torch.save(whole, folder / 'whole.pth')
    data = (folder / 'whole.pth').read_bytes()
    for name, part in {
        'truncated': data[: len(data) // 2],
        'few bytes': data[:10],
        'empty': b'',
        'text': b'A classifier.\n\x1b[31m',
        'a page': b'<!DOCTYPE html>\n<html>\n<body>404</body>\n</html>\n',
        'an LFS pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n',
        'zeros': bytes(1000),
    }.items():
        files[name] = folder / f'{name.replace(" ", "_")}.pth'
        files[name].write_bytes(part)
    files['a folder'] = folder / 'folder.pth'
    files['a folder'].mkdir()
    files['missing'] = folder / 'missing.pth'
    return files


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp('damaged'))


@pytest.fixture
def config(tmp_path):
    backbone = dict(type='mmpretrain.VisionTransformer', arch='s', img_size=32, patch_size=8)
    path = tmp_path / 'config.py'
    Config(dict(default_scope='mmpretrain', model=dict(type='X', backbone=backbone, vlm=dict(type='Y')))).dump(path)
    return str(path)


def check(run, path, argument, out):
    with pytest.raises(SystemExit) as caught:
        run()
    message = str(caught.value)
    assert message.startswith(f'{argument}: '), message
    assert path.name in message and '\n' not in message and '\x1b' not in message, message
    assert not out.exists()


@pytest.mark.parametrize('tool', ['classifier_to_backbone', 'save_pretrained'])
def test_converters_of_checkpoints(load_tool, files, config, tmp_path, tool):
    module, out = load_tool(f'model_converters/{tool}'), tmp_path / 'out'
    for path in files.values():
        check(lambda path=path: module.main([config, str(path), str(out)]), path, 'CHECKPOINT', out)


def test_mixing_weights(load_tool, files, tmp_path):
    module, out = load_tool('mix_weights'), tmp_path / 'out.pth'
    good = tmp_path / 'good.pth'
    torch.save({'a': torch.ones(2)}, good)
    for path in files.values():
        check(lambda path=path: module.main([str(path), str(good), str(out), '--beta', '0.5']), path, 'REAL', out)
        check(lambda path=path: module.main([str(good), str(path), str(out), '--beta', '0.5']), path, 'SYN', out)


def test_janus(load_tool, files, tmp_path):
    module, out = load_tool('model_converters/janus_to_transformers'), tmp_path / 'out'
    for path in files.values():
        if path.is_file():
            with pytest.raises(SystemExit), module.Weights(module.find_files(path)):
                pass
            check(lambda path=path: module.Weights(module.find_files(path)), path, 'IN', out)
    for name, content in {
        'model.safetensors': b'12345',
        'model.safetensors.index.json': b'{"weight_map": [1]}',
        'a.index.json': b'[' * 100_000,
        'b.index.json': b'{"weight_map": {"a": 3}}',
        'c.index.json': b'\xff',
    }.items():
        folder = tmp_path / name.replace('.', '_')
        folder.mkdir()
        (folder / name).write_bytes(content)
        check(lambda folder=folder: module.Weights(module.find_files(folder)), folder / name, 'IN', out)


def test_composing_llava(load_tool, files, tmp_path):
    module, out = load_tool('model_converters/compose_llava'), tmp_path / 'out'
    broken = {'no_json': 'no JSON', 'a_list': '[1]', 'no_type': '{}', 'deep': '[' * 100_000}
    for name, content in broken.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / 'config.json').write_text(content)
    tower = dict(model_type='clip_vision_model', hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    (tmp_path / 'cut').mkdir()
    (tmp_path / 'cut' / 'config.json').write_text(json.dumps(tower | dict(num_attention_heads=1, image_size=8)))
    save_file({'a': torch.ones(3)}, tmp_path / 'cut' / 'model.safetensors')
    data = (tmp_path / 'cut' / 'model.safetensors').read_bytes()
    (tmp_path / 'cut' / 'model.safetensors').write_bytes(data[:20])
    for path in [*(tmp_path / name for name in broken), tmp_path / 'cut', files['text'], files['empty']]:
        check(lambda path=path: module.main([str(path), 'language', str(out)]), path, 'VISION', out)
