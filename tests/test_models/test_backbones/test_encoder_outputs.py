"""Every library's encoder gives its own patch tokens, in the order of the image, and its own class token."""

from types import SimpleNamespace

import pytest
import torch
from mmpretrain.registry import MODELS

from mergemix_mm.models.backbones.encoder_branch import EncoderBranch

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
# Of transformers' vision configs.
SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7)
# Height and width of the images: those of the config, and others that are no square.
SIZES = [(28, 28), (21, 35)]


def randomised(model):
    """Random values everywhere: initialised norms would hide a forgotten one."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    return model


def run(model, *size):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    return images, EncoderBranch(model)(images)


def assert_tokens(found, tokens, grid, num_prefix):
    """`found` is the map of `tokens` [B, L, C], row by row, whose first is the class token if there is a prefix."""
    rows, columns = grid
    assert found.features.shape == (2, 16, rows, columns)
    torch.testing.assert_close(found.features.flatten(2).transpose(1, 2), tokens[:, num_prefix:])
    assert tokens.abs().mean() > 0.05
    if num_prefix:
        torch.testing.assert_close(found.class_token, tokens[:, 0])
    else:
        assert found.class_token is None


def transformers_model(name, config, **options):
    transformers = pytest.importorskip('transformers')
    return randomised(getattr(transformers, name)(getattr(transformers, config)(**(SMALL | options))))


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kind', ['CLIPVisionModel', 'tower', 'CLIPVisionModelWithProjection'])
@torch.no_grad()
def test_clip_of_transformers_normalises_all_tokens_and_projects_none(size, kind):
    name = 'CLIPVisionModel' if kind == 'tower' else kind
    model = transformers_model(name, 'CLIPVisionConfig', intermediate_size=32, projection_dim=24)
    tower = getattr(model, 'vision_model', model)  # The model itself in transformers 5.
    images, found = run(tower if kind == 'tower' else model, *size)
    output = tower(images, interpolate_pos_encoding=True)
    tokens = tower.post_layernorm(output.last_hidden_state)
    assert_tokens(found, tokens, (size[0] // 7, size[1] // 7), 1)
    torch.testing.assert_close(found.class_token, output.pooler_output)


@pytest.mark.parametrize('size', SIZES)
@torch.no_grad()
def test_siglip_of_transformers_has_no_class_token(size):
    model = transformers_model('SiglipVisionModel', 'SiglipVisionConfig', intermediate_size=32)
    images, found = run(model, *size)
    tokens = model(images, interpolate_pos_encoding=True).last_hidden_state
    assert_tokens(found, tokens, (size[0] // 7, size[1] // 7), 0)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(('name', 'num_prefix'), [('Dinov2', 1), ('Dinov2WithRegisters', 5)])
@torch.no_grad()
def test_dinov2_of_transformers_with_registers_and_without(name, num_prefix, size):
    model = transformers_model(f'{name}Model', f'{name}Config')
    images, found = run(model, *size)
    assert_tokens(found, model(images).last_hidden_state, (size[0] // 7, size[1] // 7), num_prefix)


@torch.no_grad()
def test_a_vision_transformer_that_no_adapter_knows_is_read_by_the_patch_size_of_its_config():
    model = transformers_model('ViTModel', 'ViTConfig', intermediate_size=32)
    images, found = run(model, 21, 35)
    assert_tokens(found, model(images, interpolate_pos_encoding=True).last_hidden_state, (3, 5), 1)


@torch.no_grad()
def test_convnext_of_transformers_gives_its_last_map():
    options = dict(hidden_sizes=[4, 4, 8, 16], depths=[1, 1, 1, 1], patch_size=4, num_hidden_layers=4)
    model = transformers_model('ConvNextModel', 'ConvNextConfig', **options)
    images, found = run(model, 65, 98)
    assert found.features.shape == (2, 16, 2, 3) and found.class_token is None
    assert torch.equal(found.features, model(images).last_hidden_state)


def blip2_config():
    transformers = pytest.importorskip('transformers')
    qformer = dict(vocab_size=11, hidden_size=12, num_attention_heads=2, num_hidden_layers=2, intermediate_size=24)
    text = dict(model_type='opt', vocab_size=11, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, ffn_dim=8)
    return transformers.Blip2Config(
        vision_config=SMALL | dict(intermediate_size=32),
        qformer_config=qformer | dict(encoder_hidden_size=16, cross_attention_frequency=1),
        text_config=text | dict(word_embed_proj_dim=8),
        num_query_tokens=6,
        image_text_hidden_size=10,
    )


@torch.no_grad()
def test_a_qformer_gives_its_queries_before_the_projection():
    transformers = pytest.importorskip('transformers')
    model = randomised(transformers.Blip2VisionModelWithProjection(blip2_config()))
    images, found = run(model, 28, 28)
    assert found.shape == (2, 6, 12)
    projected = torch.nn.functional.normalize(model.vision_projection(found), dim=-1)
    torch.testing.assert_close(projected, model(images).image_embeds)


@pytest.mark.parametrize('name', ['Blip2Model', 'Blip2ForImageTextRetrieval', 'Blip2ForConditionalGeneration'])
@torch.no_grad()
def test_every_model_with_a_qformer_gives_its_queries(name):
    transformers = pytest.importorskip('transformers')
    model = randomised(getattr(transformers, name)(blip2_config()))
    vision_half = transformers.Blip2VisionModelWithProjection(blip2_config()).eval()
    vision_half.load_state_dict(model.state_dict(), strict=False)
    images, found = run(model, 28, 28)
    torch.testing.assert_close(found, EncoderBranch(vision_half)(images))
    assert found.abs().mean() > 0.05


@torch.no_grad()
def test_a_qformer_kept_in_float32_reads_a_vision_model_in_half_precision():
    transformers = pytest.importorskip('transformers')
    model = randomised(transformers.Blip2VisionModelWithProjection(blip2_config()))
    expected = run(model, 28, 28)[1]
    model.vision_model.to(torch.bfloat16)
    images, found = run(model, 35, 28)
    assert found.dtype == images.dtype
    torch.testing.assert_close(run(model, 28, 28)[1], expected, atol=0.2, rtol=0.2)


def timm_vit(name='vit_tiny_patch16_224', **options):
    timm = pytest.importorskip('timm')
    options = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, dynamic_img_size=True) | options
    return randomised(timm.create_model(name, **options))


@pytest.mark.parametrize('size', [(32, 32), (24, 40)])
@pytest.mark.parametrize(
    ('options', 'num_prefix'),
    [({}, 1), (dict(reg_tokens=4), 5), (dict(class_token=False, global_pool='avg'), 0)],
)
@torch.no_grad()
def test_vision_transformer_of_timm(options, num_prefix, size):
    model = timm_vit(**options)
    images, found = run(model, *size)
    assert_tokens(found, model.forward_features(images), (size[0] // 8, size[1] // 8), num_prefix)


@torch.no_grad()
def test_registers_without_a_class_token_give_none():
    found = run(timm_vit(reg_tokens=4, class_token=False, global_pool='avg'), 32, 32)[1]
    assert found.features.shape == (2, 16, 4, 4) and found.class_token is None


@torch.no_grad()
def test_convnext_of_timm_gives_its_map_before_pooling():
    timm = pytest.importorskip('timm')
    model = randomised(timm.create_model('convnext_atto', depths=(1, 1, 1, 1), dims=(4, 4, 8, 16)))
    images, found = run(model, 64, 96)
    assert found.features.shape == (2, 16, 2, 3) and found.class_token is None
    assert torch.equal(found.features, model.forward_features(images))


@torch.no_grad()
def test_a_map_of_timm_with_channels_last_is_turned():
    timm = pytest.importorskip('timm')
    model = randomised(
        timm.create_model('swin_tiny_patch4_window7_224', img_size=64, window_size=2, embed_dim=4, depths=(1, 1))
    )
    images, found = run(model, 64, 64)
    assert found.features.shape == (2, 8, 8, 8)
    assert torch.equal(found.features.permute(0, 2, 3, 1), model.forward_features(images))


@pytest.mark.parametrize('size', [(32, 32), (24, 40)])
@pytest.mark.parametrize(
    ('cfg', 'num_prefix'),
    [
        (dict(type='VisionTransformer'), 1),
        (dict(type='VisionTransformer', with_cls_token=False), 0),
        (dict(type='DistilledVisionTransformer'), 2),
        (dict(type='ToMeVisionTransformer', num_merge=3), 1),
    ],
)
@torch.no_grad()
def test_vision_transformer_of_mmpretrain(cfg, num_prefix, size):
    model = randomised(MODELS.build(cfg | dict(arch=ARCH, img_size=32, patch_size=8, out_type='raw')))
    images, found = run(model, *size)
    assert_tokens(found, model(images)[0], (size[0] // 8, size[1] // 8), num_prefix)


@torch.no_grad()
def test_vision_transformer_of_mmpretrain_with_a_map_has_no_class_token():
    model = randomised(
        MODELS.build(dict(type='VisionTransformer', arch=ARCH, img_size=32, patch_size=8, out_type='featmap'))
    )
    images, found = run(model, 24, 40)
    assert torch.equal(found.features, model(images)[0]) and found.class_token is None


@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[4, 4, 8, 16]), gap_before_final_norm=False),
        dict(type='ResNet', depth=18, base_channels=2),
    ],
)
@torch.no_grad()
def test_cnn_of_mmpretrain_gives_its_map(cfg):
    model = randomised(MODELS.build(cfg))
    images, found = run(model, 64, 96)
    assert found.features.shape == (2, 16, 2, 3) and found.class_token is None
    assert torch.equal(found.features, model(images)[0])


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (dict(type='VisionTransformer', arch=ARCH, img_size=32, patch_size=8), r"\[1, 16\], pooled.*out_type='raw'"),
        (dict(type='ConvNeXt', arch='atto'), r'\[1, 320\], pooled.*gap_before_final_norm=False'),
        (dict(type='ResNet', depth=18, out_indices=(2, 3)), '2 outputs where one is needed: .* out_indices'),
        (
            dict(type='BEiTViT', arch=ARCH, img_size=32, patch_size=8, out_type='raw'),
            r"tokens \[1, 17, 16\] whose grid is not known.*out_type='featmap'",
        ),
    ],
)
def test_an_output_that_is_no_map_names_the_key_to_change(cfg, message):
    branch = EncoderBranch(cfg, name='encoders[3]')
    with pytest.raises(ValueError, match=rf'encoders\[3\] \(`{cfg["type"]}`\).*{message}'):
        branch(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize('out_type', ['raw', 'featmap'])
def test_images_that_are_not_made_of_whole_patches_are_an_error(out_type):
    cfg = dict(type='VisionTransformer', arch=ARCH, img_size=32, patch_size=8, out_type=out_type)
    with pytest.raises(ValueError, match='36 x 32 pixels are not a multiple of its 8 x 8 patches: set input_size'):
        EncoderBranch(cfg)(torch.zeros(1, 3, 36, 32))


def test_an_encoder_that_drops_patches_is_an_error():
    model = timm_vit(patch_drop_rate=0.5)
    model.patch_drop.train()
    branch = EncoderBranch(model, frozen=False)
    with pytest.raises(ValueError, match='9 tokens for 4 x 4 patches and 1 tokens before them'):
        branch(torch.zeros(1, 3, 32, 32))


def test_an_encoder_of_timm_that_takes_another_size_is_refused_when_it_is_built_or_when_images_come():
    small = dict(dynamic_img_size=False)
    message = r'takes 32 x 32.*img_size=\(48, 48\) or dynamic_img_size=True'
    with pytest.raises(ValueError, match=rf'encoders\[1\]: input_size=48: .*{message}'):
        EncoderBranch(timm_vit(**small), input_size=48, name='encoders[1]')
    branch = EncoderBranch(timm_vit(**small), input_size=32)
    assert branch(torch.zeros(1, 3, 48, 64)).features.shape[-2:] == (4, 4)
    with pytest.raises(ValueError, match=message):
        EncoderBranch(timm_vit(**small))(torch.zeros(1, 3, 48, 48))
    assert EncoderBranch(timm_vit(), input_size=48)(torch.zeros(1, 3, 32, 32)).features.shape[-2:] == (6, 6)


def test_what_other_models_of_timm_take_is_said_with_the_options_that_they_have():
    timm = pytest.importorskip('timm')
    options = dict(img_size=64, window_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 1), num_classes=0)
    swin = timm.models.SwinTransformer(**options)
    with pytest.raises(ValueError, match=r'`SwinTransformer` of timm takes 64 x 64.*img_size=\(32, 32\)'):
        EncoderBranch(swin)(torch.zeros(1, 3, 32, 32))
    features = timm_vit(features_only=True, out_indices=(-1,), dynamic_img_size=False)
    with pytest.raises(ValueError, match=r'takes 32 x 32.*img_size=\(48, 64\) or dynamic_img_size=True'):
        EncoderBranch(features)(torch.zeros(1, 3, 48, 64))
    assert EncoderBranch(features)(torch.zeros(1, 3, 32, 32)).features.shape[-2:] == (4, 4)
    wrapped = dict(type='TIMMBackbone', model_name='vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=16)
    with pytest.raises(ValueError, match=r'input_size=40: .*takes 32 x 32.*dynamic_img_size=True'):
        EncoderBranch(dict(wrapped, depth=1, num_heads=2), input_size=40)


def test_a_model_of_transformers_that_takes_one_size_names_the_keys_that_help():
    class OneSize(torch.nn.Module):
        """Refuses other sizes, as some models of transformers do."""

        config = SimpleNamespace(image_size=32, patch_size=8)

        def forward(self, pixel_values):
            if pixel_values.shape[-1] != 32:
                raise ValueError("Input image size (48*48) doesn't match model (32*32).")
            return (torch.zeros(len(pixel_values), 17, 4),)

    OneSize.__module__ = 'transformers.models.one_size'
    assert EncoderBranch(OneSize())(torch.zeros(1, 3, 32, 32)).features.shape == (1, 4, 4, 4)
    with pytest.raises(ValueError, match=r'image_size=32.*input_size=32 of the encoder, or image_size in its config'):
        EncoderBranch(OneSize())(torch.zeros(1, 3, 48, 48))
