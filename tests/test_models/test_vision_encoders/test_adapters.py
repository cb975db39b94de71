"""Without merging, the forward over an adapter's parts equals the library's own output."""

import pytest
import torch
from mmpretrain.registry import MODELS

from mergemix_mm.families import towers
from mergemix_mm.models.vision_encoders import (
    UnsupportedEncoderError,
    build_vision_encoder,
    run_layers,
    score_patches,
)
from mergemix_mm.models.vision_encoders import mmpretrain as mmpretrain_adapters
from mergemix_mm.models.vision_encoders import timm as timm_adapters

ARCH = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32)
MMPRETRAIN = {
    'vit': dict(type='VisionTransformer'),
    'vit_without_class_token': dict(type='VisionTransformer', with_cls_token=False),
    'vit_without_final_norm': dict(type='VisionTransformer', final_norm=False),
    'distilled_deit': dict(type='DistilledVisionTransformer'),
    'deit3': dict(type='DeiT3', use_layer_scale=True),
    'clip': dict(type='VisionTransformer', pre_norm=True, norm_cfg=dict(type='LN', eps=1e-5)),
    'dinov2': dict(
        type='VisionTransformer', layer_scale_init_value=1e-2, layer_cfgs=dict(ffn_type='swiglu_fused'), patch_size=14
    ),
    'mocov3': dict(type='MoCoV3ViT', patch_size=16),
    'tome': dict(type='ToMeVisionTransformer'),
    'eva02': dict(type='ViTEVA02'),
    'eva02_sub_norm': dict(type='ViTEVA02', sub_ln=True, layer_cfgs=dict(qk_scale=0.5)),
    'eva02_without_class_token': dict(type='ViTEVA02', with_cls_token=False),
}


def mmpretrain_vit(name, **overrides):
    patch = MMPRETRAIN[name].get('patch_size', 16)
    cfg = dict(arch=ARCH, img_size=4 * patch, patch_size=patch, out_type='raw') | MMPRETRAIN[name] | overrides
    return randomised(MODELS.build(cfg)), 4 * patch


def randomised(model):
    """Random values everywhere: initialised biases and layer scales would hide a forgotten one."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.eval()  # Not chained: MMPretrain's backbones return None.
    return model


def adapter_forward(model, images):
    encoder = build_vision_encoder(model)
    x, grid = encoder.embed(images)
    assert x.size(1) == grid[0] * grid[1] + encoder.num_prefix_tokens
    for x, _ in run_layers(encoder.layers, x, [0] * len(encoder.layers), encoder.num_prefix_tokens):
        pass
    return encoder.finish(x)


def assert_same(got, expected):
    assert expected.abs().mean() > 0.05
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('name', MMPRETRAIN)
@torch.no_grad()
def test_mmpretrain(name):
    model, size = mmpretrain_vit(name)
    images = torch.randn(2, 3, size, size)
    assert_same(adapter_forward(model, images), model(images)[0])


@pytest.mark.parametrize('name', ['vit', 'distilled_deit', 'deit3', 'eva02', 'eva02_without_class_token'])
@torch.no_grad()
def test_mmpretrain_at_another_size_and_not_square(name):
    model, size = mmpretrain_vit(name)
    images = torch.randn(2, 3, size + 16, size - 16)
    assert_same(adapter_forward(model, images), model(images)[0])


SMALL = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=7)
MLP, OTHER_SIZES = dict(intermediate_size=32), [(28, 28), (14, 28)]
INTERNVL = dict(MLP, image_size=[28, 28], patch_size=[7, 7])
# Of transformers: class of the model, options of its config, sizes of images.
TRANSFORMERS = {
    'clip': ('CLIPVisionModel', MLP, [(28, 28)]),
    'clip_with_projection': ('CLIPVisionModelWithProjection', MLP, [(28, 28)]),
    'siglip': ('SiglipVisionModel', MLP, [(28, 28)]),
    'dinov2': ('Dinov2Model', dict(mlp_ratio=2), [(28, 42)]),
    'dinov2_swiglu': ('Dinov2Model', dict(mlp_ratio=2, use_swiglu_ffn=True), [(28, 42)]),
    'dinov2_registers': ('Dinov2WithRegistersModel', dict(mlp_ratio=2, num_register_tokens=3), OTHER_SIZES),
    'dinov2_registers_swiglu': ('Dinov2WithRegistersModel', dict(mlp_ratio=2, use_swiglu_ffn=True), OTHER_SIZES),
    'dinov3': ('DINOv3ViTModel', dict(MLP, num_register_tokens=4), OTHER_SIZES),
    'dinov3_gated': ('DINOv3ViTModel', dict(MLP, use_gated_mlp=True, key_bias=True, query_bias=False), OTHER_SIZES),
    'janus': ('JanusVisionModel', dict(projection_dim=16, num_image_tokens=16, depth=1), [(28, 28)]),
    'smolvlm': ('SmolVLMVisionTransformer', MLP, OTHER_SIZES),
    'idefics3': ('Idefics3VisionTransformer', MLP, OTHER_SIZES),
    'internvl_large': ('InternVLVisionModel', INTERNVL, OTHER_SIZES),
    'internvl_6b': (
        'InternVLVisionModel',
        dict(INTERNVL, norm_type='rms_norm', use_qk_norm=True, attention_bias=True),
        OTHER_SIZES,
    ),
    'internvl_final_norm': (
        'InternVLVisionModel',
        dict(INTERNVL, use_mean_pooling=False, use_absolute_position_embeddings=False),
        OTHER_SIZES,
    ),
}


def transformers_model(name, **overrides):
    transformers = pytest.importorskip('transformers')
    cls, options, _ = TRANSFORMERS[name]
    cls = getattr(transformers, cls)
    return randomised(cls(cls.config_class(**SMALL | options | overrides)))


@pytest.mark.parametrize('name', TRANSFORMERS)
@torch.no_grad()
def test_transformers(name):
    model = transformers_model(name)
    for size in TRANSFORMERS[name][-1]:
        images = torch.randn(2, 3, *size)
        assert_same(adapter_forward(model, images), model(images).last_hidden_state)
    encoder = build_vision_encoder(model)
    assert (encoder.patch_size, encoder.image_size) == ((7, 7), (28, 28))


@pytest.mark.parametrize('name', ['clip', 'clip_with_projection'])
@torch.no_grad()
def test_transformers_clip_at_another_size(name):
    model, images = transformers_model(name), torch.randn(1, 3, 42, 28)
    expected = model(images, interpolate_pos_encoding=True).last_hidden_state
    assert_same(adapter_forward(model, images), expected)


TIMM = {
    'vit': dict(),
    'no_class_token': dict(class_token=False, global_pool='avg'),
    'registers': dict(reg_tokens=3, no_embed_class=True),
    'layer_scale_and_qk_norm': dict(init_values=0.1, qk_norm=True),
    'pre_norm': dict(pre_norm=True),
    'dynamic_size': dict(dynamic_img_size=True),
}


@pytest.mark.parametrize('name', TIMM)
@torch.no_grad()
def test_timm(name):
    timm = pytest.importorskip('timm')
    model = randomised(
        timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=0, **TIMM[name]
        )
    )
    images = torch.randn(2, 3, 32, 48 if name == 'dynamic_size' else 32)
    assert_same(adapter_forward(model, images), model.forward_features(images))


@torch.no_grad()
def test_timm_distilled_and_through_mmpretrain():
    timm = pytest.importorskip('timm')
    small = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    model, images = randomised(timm.create_model('deit_tiny_distilled_patch16_224', **small)), torch.randn(2, 3, 32, 32)
    assert_same(adapter_forward(model, images), model.forward_features(images))
    wrapped = MODELS.build(dict(type='TIMMBackbone', model_name='vit_tiny_patch16_224', **small))
    assert build_vision_encoder(wrapped).model is wrapped.timm_model


# Of timm's class Eva: options beside the small size, and whether tokens can merge.
EVA: dict[str, tuple[dict, bool]] = {
    'eva_giant_patch14_224': (dict(), True),
    'eva02_tiny_patch14_224': (dict(), False),
    'eva02_base_patch16_clip_224': (dict(), False),
    'vit_small_patch16_dinov3': (dict(), False),
    'vit_small_patch16_dinov3_qkvb': (dict(), False),
    'vit_7b_patch16_dinov3': (dict(), False),
    'vit_base_patch16_sapiens2': (dict(num_heads=4, num_kv_heads=(4, 2, 2)), False),
    'vit_small_patch16_rope_mixed_ape_224': (dict(), False),
    'vit_base_patch16_rope_reg1_gap_256': (dict(), False),
    'vit_pe_core_gigantic_patch14_448': (dict(), False),
}


def eva_model(name, **options):
    timm = pytest.importorskip('timm')
    if name not in timm.list_models():
        pytest.skip('a later timm has it')
    patch = 14 if 'patch14' in name else 16
    small = dict(embed_dim=32, depth=3, num_heads=2, num_classes=0, img_size=4 * patch)
    return timm.create_model(name, pretrained=False, **small | EVA[name][0] | options), patch


@pytest.mark.parametrize('name', EVA)
@torch.no_grad()
def test_timm_eva(name):
    model, patch = eva_model(name)
    randomised(model)
    images = torch.randn(2, 3, 4 * patch, 4 * patch)
    assert_same(adapter_forward(model, images), model.forward_features(images))
    assert (build_vision_encoder(model).no_merge is None) == EVA[name][1]
    model, images = randomised(eva_model(name, dynamic_img_size=True)[0]), torch.randn(2, 3, 6 * patch, 3 * patch)
    assert_same(adapter_forward(model, images), model.forward_features(images))


@torch.no_grad()
def test_timm_eva_at_its_real_size():
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    for name, size in (('eva02_tiny_patch14_224', (224, 224)), ('vit_small_patch16_dinov3', (256, 192))):
        model, images = timm.create_model(name, pretrained=False, num_classes=0).eval(), torch.randn(1, 3, *size)
        assert_same(adapter_forward(model, images), model.forward_features(images))


@torch.no_grad()
def test_transformers_dinov3_at_its_real_size():
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig()).eval()
    images = torch.randn(1, 3, 224, 256)
    assert_same(adapter_forward(model, images), model(images).last_hidden_state)


ROTARY = ['dinov3', 'eva02', 'eva02_tiny_patch14_224', 'vit_small_patch16_dinov3', 'vit_base_patch16_rope_reg1_gap_256']


def model_and_images(name, **options):
    """A model of any of the three libraries, and images of its size."""
    if name in EVA:
        model = randomised(eva_model(name, **options)[0])
    elif name in TRANSFORMERS:
        model = transformers_model(name, **options)
    else:
        model, _ = mmpretrain_vit(name, **options)
    return model, torch.randn(2, 3, *build_vision_encoder(model).image_size)


@pytest.mark.parametrize('name', ROTARY)
@torch.no_grad()
def test_without_rotation_the_output_is_another(name, monkeypatch):
    """Otherwise, the tests above would not find a rotation that is left out."""
    model, images = model_and_images(name)
    expected = adapter_forward(model, images)
    for module in (towers, timm_adapters):
        monkeypatch.setattr(module, 'rotate', lambda x, *_: x)
    monkeypatch.setattr(mmpretrain_adapters.EVA02Layer, '_rotate', lambda self, x: x)
    assert (adapter_forward(model, images) - expected).abs().mean() > 1e-3


def library_forward(model, images):
    """The tokens after the last layer, as the library computes them."""
    if hasattr(model, 'forward_features'):
        return model.forward_features(images)
    return model(images)[0]


@pytest.mark.parametrize('name', ['dinov2_registers', *ROTARY])
@torch.no_grad()
def test_in_training_stochastic_depth_and_shifted_positions_are_those_of_the_library(name):
    model, images = model_and_images(name, drop_path_rate=0.4)
    still = library_forward(model, images)
    model.train()
    outputs = []
    for forward in (adapter_forward, library_forward):
        torch.manual_seed(3)
        outputs.append(forward(model, images))
    assert_same(*outputs)
    assert (outputs[0] - still).abs().mean() > 1e-3


@pytest.mark.parametrize(
    ('name', 'option'),
    [
        ('vit', 'layer_cfgs'),
        ('eva02', 'attn_drop_rate'),
        ('clip', 'attention_dropout'),
        ('dinov2_registers', 'attention_probs_dropout_prob'),
        ('dinov3', 'attention_dropout'),
        ('eva02_tiny_patch14_224', 'attn_drop_rate'),
        ('vit_base_patch16_rope_reg1_gap_256', 'attn_drop_rate'),
    ],
)
def test_the_dropout_of_attention_is_that_of_the_library(name, option):
    model, _ = model_and_images(name, **{option: dict(attn_drop_rate=0.25) if option == 'layer_cfgs' else 0.25})
    assert [layer.attention_dropout for layer in build_vision_encoder(model).layers] == [0.25] * 3


def attention_maps(model, images, layer):
    """Attention [B, H, N, N] of a layer, counted from 1, as the library itself computes it in its own forward."""
    if hasattr(model, 'set_attn_implementation'):
        model.set_attn_implementation('eager')
        return model(images, output_attentions=True).attentions[layer - 1]
    attn, maps = (model.blocks if hasattr(model, 'blocks') else model.layers)[layer - 1].attn, []
    attn.fused_attn = False  # Of timm.
    handle = attn.attn_drop.register_forward_hook(lambda _, args, __: maps.append(args[0]))
    model(images)
    handle.remove()
    return maps[0]


@pytest.mark.parametrize('name', ['dinov2_registers', *ROTARY])
@torch.no_grad()
def test_saliency_without_merging_is_the_attention_of_the_library(name):
    """That of the class token's query; without a class token, the mean of all queries."""
    model, images = model_and_images(name)
    encoder = build_vision_encoder(model)

    def row(layer, weights=1.0):
        maps = (attention_maps(model, images, layer) * weights).mean(dim=1)
        votes = maps[:, 0] if encoder.has_class_token else maps.mean(dim=1)
        return (votes / votes.sum(dim=1, keepdim=True))[:, encoder.num_prefix_tokens :]

    expected = row(2)
    scores = score_patches(encoder, images, num_merge=0, layer=2)
    torch.testing.assert_close(scores.saliency, expected, atol=1e-5, rtol=1e-5)
    mean = score_patches(encoder, images, num_merge=0, layer=2, saliency='mean').saliency
    torch.testing.assert_close(mean, (row(1) + expected) / 2, atol=1e-5, rtol=1e-5)
    value = encoder.layers[0].query_key_value(encoder.embed(images)[0])[2]
    weighted = score_patches(encoder, images, num_merge=0, layer=1, saliency='value_norm').saliency
    torch.testing.assert_close(weighted, row(1, value.norm(dim=-1).unsqueeze(2)), atol=1e-5, rtol=1e-5)
    assert expected.std() > 1e-3
    assert scores.num_kept_patches == scores.saliency.size(1) == 16


@pytest.mark.parametrize('name', ['vit_dwee_patch16_reg1_gap_256', 'vit_dlittle_patch16_reg1_gap_256'])
def test_timm_blocks_with_attention_of_another_kind_are_refused(name):
    timm = pytest.importorskip('timm')
    if name not in timm.list_models():
        pytest.skip('a later timm has it')
    model = timm.create_model(name, img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    with pytest.raises(UnsupportedEncoderError, match='attention of its layers is `DiffAttention`, not `Attention`'):
        build_vision_encoder(model)


@pytest.mark.parametrize('library', ['timm', 'mmpretrain'])
def test_attention_of_somebody_is_refused_in_the_layers_of_a_library(library):
    if library == 'timm':
        timm = pytest.importorskip('timm')
        model = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
        layer = model.blocks[1]
    else:
        model, _ = mmpretrain_vit('vit')
        layer = model.layers[1]
    layer.attn.__class__ = type('GatedAttention', (type(layer.attn),), {})
    with pytest.raises(UnsupportedEncoderError, match='attention of its layers is `GatedAttention`'):
        build_vision_encoder(model)


def test_images_of_another_size_than_a_timm_model_takes_are_refused_with_the_options_that_help():
    timm = pytest.importorskip('timm')
    small = dict(patch_size=8, embed_dim=16, depth=2, num_heads=2)
    images = torch.randn(1, 3, 48, 64)
    fixed = timm.models.VisionTransformer(img_size=32, **small)
    message = r'48 x 64 .*takes 32 x 32.*img_size=\(48, 64\) or dynamic_img_size=True'
    with pytest.raises(ValueError, match=message):
        score_patches(build_vision_encoder(fixed), images)
    for options in (dict(img_size=(48, 64)), dict(dynamic_img_size=True, img_size=32)):
        model = timm.models.VisionTransformer(**options, **small)
        model.eval()
        assert score_patches(build_vision_encoder(model), images).grid == (6, 8)


@torch.no_grad()
def test_a_lora_model_of_mmpretrain_is_read_with_its_adapters():
    targets = [dict(type='.*qkv'), dict(type='proj'), dict(type='layers.0.0')]
    vit = dict(type='VisionTransformer', arch=ARCH, img_size=64, patch_size=16, out_type='raw')
    model = randomised(MODELS.build(dict(type='LoRAModel', module=vit, alpha=2, rank=2, targets=targets)))
    images = torch.randn(2, 3, 64, 64)
    assert_same(adapter_forward(model, images), model(images)[0])
    plain = model(images)[0]
    model.module.layers[0].attn.qkv.lora_up.weight.data.zero_()
    assert not torch.allclose(adapter_forward(model, images), plain, atol=1e-3)


def beit():
    return MODELS.build(dict(type='BEiTViT', arch=ARCH, img_size=32, patch_size=8))


def swin():
    arch = dict(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4)
    return MODELS.build(dict(type='SwinTransformer', arch=arch, img_size=32))


def resnet():
    return MODELS.build(dict(type='ResNet', depth=18))


def post_norm_eva():
    timm = pytest.importorskip('timm')
    return timm.models.Eva(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, use_post_norm=True)


def gated_eva():
    model, _ = eva_model('eva02_tiny_patch14_224')
    model.blocks[1].attn.gate = torch.nn.Linear(32, 32)
    return model


@pytest.mark.parametrize(
    ('build', 'name', 'reason'),
    [
        (beit, 'BEiTViT', 'no adapter'),
        (swin, 'SwinTransformer', 'no adapter'),
        (resnet, 'ResNet', 'no adapter'),
        (post_norm_eva, 'Eva', '`EvaBlockPostNorm`, not `EvaBlock`'),
        (gated_eva, 'Eva', 'gated'),
    ],
)
def test_an_encoder_that_merging_cannot_serve_is_refused_by_name(build, name, reason):
    with pytest.raises(UnsupportedEncoderError) as error:
        build_vision_encoder(build())
    message = str(error.value)
    assert message.startswith(f'`{name}` cannot score')
    assert reason in message
    assert 'timm VisionTransformer' in message
    assert 'MergeMix(encoder=dict(...))' in message


def test_a_subclass_with_layers_of_its_own_is_refused():
    model, _ = mmpretrain_vit('vit')
    model.layers[1] = type('OtherLayer', (type(model.layers[1]),), {})(16, 2, 32)
    with pytest.raises(UnsupportedEncoderError, match='OtherLayer'):
        build_vision_encoder(model)
