"""From a classifier that MixupClassifier trained to the backbone of a detector: whole, in its grid, or not at all."""

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS, init_default_scope

import mergemix_mm  # noqa: F401

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
VIT = dict(type='mmpretrain.VisionTransformer', arch=ARCH, patch_size=8)


@pytest.fixture
def tool(load_tool):
    return load_tool('model_converters/classifier_to_backbone')


@pytest.fixture
def detector(tmp_path):
    """detector(**backbone) -> path of a config with a ViT for images of 64 x 48 pixels."""

    def write(**kwargs):
        backbone = VIT | dict(img_size=(64, 48), out_type='featmap') | kwargs
        path = tmp_path / 'detector.py'
        Config(dict(default_scope='mmdet', model=dict(type='DETR', backbone=backbone))).dump(str(path))
        return str(path)

    return write


@pytest.fixture
def checkpoint(tmp_path):
    """checkpoint(**backbone) -> path of a checkpoint as a run leaves it: head, optimizer, logged values."""

    def write(**kwargs):
        torch.manual_seed(0)
        model = MODELS.build(
            dict(
                type='MixupClassifier',
                backbone=VIT | dict(img_size=32) | kwargs,
                head=dict(type='mmpretrain.VisionTransformerClsHead', num_classes=3, in_channels=16),
                data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', num_classes=3),
            )
        )
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        path = tmp_path / 'epoch_1.pth'
        logs = dict(loss=HistoryBuffer([1.0], [1]))
        torch.save(dict(state_dict=model.state_dict(), optimizer={}, message_hub=dict(log_scalars=logs)), path)
        return path, model.backbone

    return write


def test_a_backbone_arrives_whole_through_init_cfg(tool, detector, checkpoint, tmp_path, capsys):
    path, trained = checkpoint()
    out = tmp_path / 'new' / 'backbone.pth'
    tool.main([detector(), str(path), str(out)])
    assert 'pos_embed: resized from [1, 17, 16] to [1, 49, 16]' in capsys.readouterr().out
    assert [file.name for file in out.parent.iterdir()] == ['backbone.pth']

    init_default_scope('mmdet')
    backbone = MODELS.build(
        Config.fromfile(detector(init_cfg=dict(type='Pretrained', checkpoint=str(out)))).model.backbone
    )
    backbone.init_weights()
    expected = trained.state_dict()
    found = backbone.state_dict()
    assert found.keys() == expected.keys()
    for name in expected.keys() - {'pos_embed'}:
        assert torch.equal(found[name], expected[name]), name
    patches = expected['pos_embed'][:, 1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    patches = torch.nn.functional.interpolate(patches, size=(8, 6), mode='bicubic', align_corners=False)
    resized = torch.cat([expected['pos_embed'][:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(found['pos_embed'], resized)


def test_what_was_seen_in_training_is_seen_again(tool, detector, checkpoint, tmp_path):
    path, trained = checkpoint()
    trained.out_type = 'featmap'
    trained.eval()
    tool.main([detector(img_size=32), str(path), str(tmp_path / 'out.pth')])
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'out.pth'))
    init_default_scope('mmdet')
    backbone = MODELS.build(Config.fromfile(detector(img_size=32, init_cfg=init)).model.backbone)
    backbone.init_weights()
    backbone.eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(backbone(images)[0], trained(images)[0])


def test_every_weight_that_does_not_match_is_named_at_once(tool, detector, checkpoint, tmp_path):
    path, _ = checkpoint()
    arch = ARCH | dict(num_layers=3, feedforward_channels=48)
    with pytest.raises(SystemExit) as error:
        tool.main([detector(arch=arch, final_norm=False), str(path), str(tmp_path / 'out.pth')])
    message = str(error.value)
    assert 'the VisionTransformer at model.backbone differ' in message
    missing = [f'layers.2.{name}' for name in MODELS.build(VIT).layers[0].state_dict()]
    unexpected = ['ln1.weight', 'ln1.bias']
    other_sizes = [f'layers.{i}.ffn.layers.{name}' for i in (0, 1) for name in ('0.0.weight', '0.0.bias', '1.weight')]
    assert all(name in message for name in [*missing, *unexpected, *other_sizes])
    assert not (tmp_path / 'out.pth').exists()


def test_weights_that_the_backbone_does_without_are_dropped_on_demand(tool, detector, checkpoint, tmp_path):
    path, _ = checkpoint(out_type='avg_featmap')
    arguments = [detector(), str(path), str(tmp_path / 'out.pth')]
    with pytest.raises(SystemExit, match='(?s)Unexpected.*ln2.weight.*--drop leaves out'):
        tool.main(arguments)
    tool.main([*arguments, '--drop', '^ln2'])
    assert 'ln2.weight' not in torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']


def test_an_encoder_of_several_is_found_by_its_key(tool, checkpoint, tmp_path):
    path, trained = checkpoint()
    encoders = [dict(encoder=dict(type='mmpretrain.ConvNeXt')), dict(encoder=VIT | dict(img_size=32))]
    config = tmp_path / 'config.py'
    model = dict(backbone=dict(type='MultiBackbone', encoders=encoders))
    Config(dict(default_scope='mmdet', model=model)).dump(str(config))
    arguments = [str(config), str(path), str(tmp_path / 'out.pth'), '--backbone']
    tool.main([*arguments, 'model.backbone.encoders.1.encoder'])
    weights = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    assert torch.equal(weights['pos_embed'], trained.pos_embed)
    for key, message in (('model.neck', "no 'neck' there"), ('model.backbone.encoders.2', "no '2' there")):
        with pytest.raises(SystemExit, match=message):
            tool.main([*arguments, key])
    with pytest.raises(SystemExit, match=r'--backbone .*dict\(type=\.\.\.\)'):
        tool.main([*arguments, 'model.backbone.encoders'])


def test_files_of_other_kinds_are_refused(tool, detector, tmp_path):
    arguments = [detector(), str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth')]
    with pytest.raises(SystemExit, match='CHECKPOINT: .*in.pth is not a file'):
        tool.main(arguments)
    torch.save(dict(state_dict={'vlm.x': torch.zeros(1)}), tmp_path / 'in.pth')
    with pytest.raises(SystemExit, match=r"no weights of a backbone \(its first: \['vlm.x'\]\)"):
        tool.main(arguments)
    torch.save(dict(state_dict={}, hook=pytest.raises), tmp_path / 'in.pth')
    with pytest.raises(SystemExit, match='more than weights and logs'):
        tool.main(arguments)


def with_config(path, **backbone):
    """The checkpoint as MMEngine writes it, with the text of its config."""
    content = torch.load(path, weights_only=False)
    cfg = Config(dict(model=dict(type='MixupClassifier', backbone=VIT | backbone), train_cfg={'a-b': dict(x=1)}))
    content['meta'] = dict(cfg=cfg.pretty_text)
    torch.save(content, path)
    return str(path)


def resized(position, grid, target, prefix):
    patches = position[:, prefix:].unflatten(1, grid).movedim(3, 1)
    patches = torch.nn.functional.interpolate(patches, size=target, mode='bicubic', align_corners=False)
    return torch.cat([position[:, :prefix], patches.flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parametrize(
    ('source', 'target', 'kwargs', 'prefix'),
    [
        ((64, 256), (64, 48), {}, 1),  # 8 x 32 patches are 16 x 16 as well.
        ((32, 128), (64, 64), {}, 1),  # 64 patches on either side, in another grid.
        ((32, 48), (64, 48), {}, 1),  # 24 patches are no square.
        ((64, 256), (64, 48), dict(with_cls_token=False, out_type='avg_featmap'), 0),
        ((64, 256), (64, 48), dict(type='mmpretrain.DeiT3'), 0),
        ((64, 256), (64, 48), dict(type='mmpretrain.DistilledVisionTransformer'), 2),
        ((60, 250), (64, 48), {}, 1),  # Padded to whole patches.
    ],
)
def test_the_grid_of_a_classifier_that_is_not_square_is_read_from_its_config(
    tool, detector, checkpoint, tmp_path, capsys, source, target, kwargs, prefix
):
    path, trained = checkpoint(img_size=source, **kwargs)
    grids = [tuple(-(-side // 8) for side in size) for size in (source, target)]
    config = detector(img_size=target, **{key: value for key, value in kwargs.items() if key != 'out_type'})
    tool.main([config, with_config(path, img_size=source, **kwargs), str(tmp_path / 'out.pth'), '--drop', '^ln2'])
    (rows, columns), (others, more) = grids
    assert f'pos_embed: from {rows} x {columns} patches to {others} x {more}' in capsys.readouterr().out
    found = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']['pos_embed']
    torch.testing.assert_close(found, resized(trained.pos_embed, *grids, prefix))


def test_a_class_token_that_the_detector_does_without_is_left_out(tool, detector, checkpoint, tmp_path):
    path, trained = checkpoint(img_size=(32, 128))
    config = detector(img_size=(64, 64), with_cls_token=False)
    arguments = [config, str(path), str(tmp_path / 'out.pth'), '--grid', '4', '16', '--drop', '^cls_token']
    tool.main(arguments)
    found = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']['pos_embed']
    torch.testing.assert_close(found, resized(trained.pos_embed[:, 1:], (4, 16), (8, 8), 0))


def test_without_a_config_the_grid_is_an_option_and_a_square_is_said_to_be_one(
    tool, detector, checkpoint, tmp_path, capsys
):
    path, trained = checkpoint(img_size=(64, 256))
    arguments = [detector(), str(path), str(tmp_path / 'out.pth')]
    tool.main(arguments)
    assert '16 x 16 patches; if not, give --grid ROWS COLUMNS' in capsys.readouterr().out
    tool.main([*arguments, '--grid', '8', '32'])
    found = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']['pos_embed']
    torch.testing.assert_close(found, resized(trained.pos_embed, (8, 32), (8, 6), 1))

    (tmp_path / 'out.pth').unlink()
    path, _ = checkpoint(img_size=(32, 48))
    with pytest.raises(SystemExit, match='^CHECKPOINT: 25 position embeddings.*--grid ROWS COLUMNS'):
        tool.main(arguments)
    with pytest.raises(SystemExit, match='^--grid 5 5: 25 patches, but there are 25 position embeddings'):
        tool.main([*arguments, '--grid', '5', '5'])
    other = with_config(path, img_size=(32, 64))
    with pytest.raises(SystemExit, match='of which its config says 4 x 8 patches: .*--grid ROWS COLUMNS'):
        tool.main([detector(), other, str(tmp_path / 'out.pth')])
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize(
    'text',
    ['import os\nos.mkdir("ran")', 'model = dict(', 'model = f()', 'model = dict(backbone=dict(img_size=f()))', 7],
)
def test_the_config_of_a_checkpoint_is_read_and_never_run(tool, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    assert tool.read_grids(dict(meta=dict(cfg=text))) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--grid', '-4', '-4'], '--grid -4 -4: rows and columns must be at least 1'),
        (['--drop', '('], r'--drop \(: .*: missing \)'),
    ],
)
def test_flags_that_cannot_be_used_are_named(tool, capsys, flags, message):
    with pytest.raises(SystemExit):
        tool.parse_args(['config.py', 'in.pth', 'out.pth', *flags])
    assert re.search(message, capsys.readouterr().err)


def test_the_error_of_weights_that_do_not_fit_is_one_line(tool, detector, checkpoint, tmp_path):
    with pytest.raises(SystemExit) as error:
        tool.main([detector(final_norm=False), str(checkpoint()[0]), str(tmp_path / 'out.pth')])
    assert '\n' not in str(error.value) and '\t' not in str(error.value)
