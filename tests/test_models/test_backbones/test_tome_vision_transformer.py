"""ToMeVisionTransformer: the plain model's checkpoints and shapes, with fewer tokens inside."""

import pytest
import torch
from mmpretrain.registry import MODELS

import mergemix_mm  # noqa: F401
from mergemix_mm.models.vision_encoders import build_vision_encoder, score_patches

VIT = dict(
    arch=dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32),
    img_size=32,
    patch_size=8,
    out_indices=[1, 3],
)


def pair(**kwargs):
    torch.manual_seed(0)
    plain = MODELS.build(dict(type='VisionTransformer', **VIT | dict(out_indices=[1, 3])) | kwargs)
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return plain, lambda **merging: load(plain, kwargs | merging)


def load(plain, kwargs):
    model = MODELS.build(dict(type='ToMeVisionTransformer', **VIT | dict(out_indices=[1, 3])) | kwargs)
    model.load_state_dict(plain.state_dict(), strict=True)
    model.eval()
    return model


@pytest.mark.parametrize('out_type', ['cls_token', 'featmap', 'avg_featmap', 'raw'])
@torch.no_grad()
def test_without_merging_it_is_the_plain_model_and_with_merging_it_keeps_its_shapes(out_type):
    plain, tome = pair(out_type=out_type)
    plain.eval()
    images = torch.randn(2, 3, 32, 24)
    expected = plain(images)
    for got, want in zip(tome(num_merge=0)(images), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    merged = tome(num_merge=7)(images)
    for got, want in zip(merged, expected, strict=True):
        assert got.shape == want.shape
        assert got.isfinite().all()
        assert not torch.allclose(got, want, atol=1e-3)


def tokens_per_layer(model, images):
    counts = []
    hooks = [
        layer.ffn.register_forward_pre_hook(lambda _, args: counts.append(args[0].size(1))) for layer in model.layers
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return counts


def test_tokens_are_merged_in_the_chosen_modes_only():
    _, tome = pair()
    images = torch.randn(2, 3, 32, 32)
    model = tome(num_merge=8, merge_in=('test',))
    assert tokens_per_layer(model, images) == [15, 13, 11, 9]
    model.train()
    assert tokens_per_layer(model, images) == [17] * 4
    model = tome(num_merge=8, inflection=-1.0, merge_in=('train',))
    assert tokens_per_layer(model, images) == [17] * 4
    model.train()
    assert tokens_per_layer(model, images) == [13, 10, 9, 9]


@torch.no_grad()
def test_featmap_gives_merged_patches_the_same_value():
    _, tome = pair(out_type='featmap')
    out = tome(num_merge=12)(torch.randn(1, 3, 32, 32))[-1]
    assert out.shape == (1, 16, 4, 4)
    assert len(out.flatten(2).transpose(1, 2)[0].unique(dim=0)) == 4


def test_a_share_of_the_patches_follows_the_size_of_the_images():
    _, tome = pair(out_type='featmap')
    model = tome(num_merge=0.5)
    for size, patches in (((32, 32), 16), ((64, 40), 40), ((30, 43), 24)):  # Sides are padded to whole patches.
        assert tokens_per_layer(model, torch.randn(1, 3, *size))[-1] == 1 + patches - patches // 2


@pytest.mark.parametrize('size', [(32, 32), (48, 80), (30, 43)])
@torch.no_grad()
def test_featmap_of_a_merged_background_is_the_plain_one_in_place(size):
    # Patches that are alike merge without loss: with proportional attention nothing else changes either.
    plain, tome = pair(out_type='featmap', patch_cfg=dict(padding=0))
    torch.nn.init.zeros_(plain.pos_embed)
    plain.eval()
    images = torch.zeros(2, 3, *size)
    images[0, :, :8, 8:16], images[1, :, 16:24, 24:32] = torch.randn(2, 3, 8, 8)
    model = tome(num_merge=0.5)
    for got, want in zip(model(images), plain(images), strict=True):
        assert got.shape == (2, 16, size[0] // 8, size[1] // 8)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(want[0, :, 0, 1], want[0, :, 0, 0], atol=1e-2)
    assert tokens_per_layer(model, images)[-1] < tokens_per_layer(plain, images)[-1]


def test_it_trains_with_gradients_in_every_parameter():
    _, tome = pair()
    model = tome(num_merge=8)
    model.train()
    model(torch.randn(2, 3, 32, 32))[-1].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize('out_type', ['cls_token', 'featmap', 'avg_featmap', 'raw'])
@torch.no_grad()
def test_registers_take_part_in_every_layer_and_in_no_output(out_type):
    plain, _ = pair(out_type=out_type)
    plain.eval()
    model = MODELS.build(dict(type='ToMeVisionTransformer', **VIT, out_type=out_type, num_registers=3))
    model.eval()
    assert model.load_state_dict(plain.state_dict(), strict=False).missing_keys == ['register_tokens']
    images = torch.randn(2, 3, 32, 24)
    x = plain.patch_embed(images)[0] + plain.resize_pos_embed(plain.pos_embed, (4, 4), (4, 3), 'bicubic')[:, 1:]
    first = (plain.cls_token + plain.pos_embed[:, :1]).expand(2, -1, -1)
    x, expected = torch.cat([first, model.register_tokens.expand(2, -1, -1), x], dim=1), []
    for number, layer in enumerate(plain.layers):
        x = layer(x)
        out = plain.ln1(x) if number == 3 else x
        if number in (1, 3):
            expected.append(plain._format_output(torch.cat([out[:, :1], out[:, 4:]], dim=1), (4, 3)))
    for got, want in zip(model(images), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_registers_never_merge_and_are_no_patches_of_the_saliency():
    model = MODELS.build(dict(type='ToMeVisionTransformer', **VIT, num_merge=12, num_registers=2))
    model.eval()
    assert tokens_per_layer(model, torch.randn(1, 3, 32, 32)) == [16, 13, 10, 7]
    scores = score_patches(build_vision_encoder(model), torch.randn(2, 3, 32, 32), num_merge=12)
    assert scores.saliency.shape == (2, 16) and scores.num_prefix_tokens == 3
    assert scores.groups.size.shape == (2, 7) and bool((scores.groups.size[:, :3] == 1).all())
    assert model.get_layer_depth('backbone.register_tokens', 'backbone.') == (0, 6)
    frozen = MODELS.build(dict(type='ToMeVisionTransformer', **VIT, num_registers=2, frozen_stages=1))
    assert not frozen.register_tokens.requires_grad and model.register_tokens.requires_grad


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(merge_in=('val',)), r"merge_in=\('val',\) must be a tuple of 'train' and 'test'"),
        (dict(merge_in='train'), "merge_in='train' must be a tuple"),
        (dict(num_merge=-1), 'num_merge=-1 must be an int >= 0'),
        (dict(num_merge=8.0), r'num_merge=8.0 must be an int >= 0, or a float in \[0, 1\)'),
        (dict(num_merge=-0.5), 'num_merge=-0.5 must be'),
        (dict(inflection=3), 'inflection=3'),
        (dict(num_registers=-1), 'num_registers=-1 must be an int >= 0'),
    ],
)
def test_bad_arguments_are_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type='ToMeVisionTransformer', **VIT) | kwargs)


def test_more_tokens_than_the_layers_can_merge_is_an_error():
    _, tome = pair()
    with pytest.raises(ValueError, match='num_merge=16: .* 15 of 16 in all. Merge fewer'):
        tome(num_merge=16)(torch.randn(1, 3, 32, 32))


class LastOutput(torch.nn.Module):
    """A backbone that gives its last output only."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        return self.backbone(images)[-1]


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize(('out_type', 'num_merge'), [('cls_token', 7), ('featmap', 0.4)])
@torch.no_grad()
def test_it_is_traced_and_exported_for_batches_of_any_size(out_type, num_merge):
    _, tome = pair(out_type=out_type)
    model, images = LastOutput(tome(num_merge=num_merge)).eval(), torch.randn(5, 3, 32, 24)
    traced = torch.jit.trace(model, images[:2])
    batch = torch.export.Dim('batch', min=1, max=64)
    exported = torch.export.export(model, (images[:2],), dynamic_shapes=dict(images={0: batch})).module()
    for some in (images, images[3:4], images.flip(0)):
        torch.testing.assert_close(traced(some), model(some), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(exported(some), model(some), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('size', [(32, 96), (8, 64), (40, 24)])
@torch.no_grad()
def test_maps_of_images_that_are_not_square_keep_their_grid(size):
    plain, tome = pair(out_type='featmap')
    images, (rows, columns) = torch.randn(2, 3, *size), (side // 8 for side in size)
    plain.eval()
    torch.testing.assert_close(tome(num_merge=0.0)(images)[-1], plain(images)[-1], atol=1e-4, rtol=1e-4)
    merged = tome(num_merge=0.4)(images)[-1]
    assert merged.shape == (2, 16, rows, columns) and merged.isfinite().all()


@torch.no_grad()
def test_images_that_are_not_made_of_whole_patches_are_padded_as_by_the_plain_model():
    plain, tome = pair(out_type='featmap')
    images = torch.randn(1, 3, 30, 41)
    plain.eval()
    assert plain(images)[-1].shape == tome(num_merge=0.3)(images)[-1].shape == (1, 16, 4, 6)
    torch.testing.assert_close(tome(num_merge=0)(images)[-1], plain(images)[-1], atol=1e-4, rtol=1e-4)
