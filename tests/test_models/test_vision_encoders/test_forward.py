"""The scoring pass against a plain pass with full attention maps."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS

from mergemix_mm.functional import TokenGroups, bipartite_soft_matching, merge_tokens
from mergemix_mm.models.vision_encoders import SALIENCIES, build_vision_encoder, recorded, score_patches

ARCH = dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)


def vit(**kwargs):
    torch.manual_seed(0)
    cfg = dict(type='VisionTransformer', arch=ARCH, img_size=32, patch_size=8, out_type='raw') | kwargs
    model = MODELS.build(cfg)
    model.eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def plain_scores(model, images, schedule, layer, saliency='attention'):
    """Scoring with whole attention maps and explicit softmax, layer by layer."""
    encoder = build_vision_encoder(model)
    prefix = encoder.num_prefix_tokens
    x, _ = encoder.embed(images)
    groups, restored = TokenGroups.identity(x.size(0), x.size(1)), []
    for number, part in enumerate(encoder.layers, start=1):
        q, k, v = part.query_key_value(x)
        logits = q @ k.transpose(-1, -2) / q.size(-1) ** 0.5 + groups.size.log()[:, None, None]
        maps = logits.softmax(-1)
        if number == layer or saliency == 'mean':
            seen = maps * v.norm(dim=-1).unsqueeze(2) if saliency == 'value_norm' else maps
            votes = groups.size.clone()
            if saliency == 'received':
                votes[:, :prefix] = 0  # Patches only.
            one = prefix and saliency != 'received'
            row = seen[:, :, 0].mean(1) if one else (seen.mean(1) * votes.unsqueeze(-1)).sum(1)
            row = row / row.sum(1, keepdim=True)
            restored.append(groups.restore(row / groups.size))
            torch.testing.assert_close(restored[-1].sum(1), torch.ones(len(x)))
        if number == layer:
            return torch.stack(restored).mean(0)[:, prefix:], groups
        x = part.add_attention(x, (maps @ v).transpose(1, 2).flatten(2))
        match = bipartite_soft_matching(k.mean(1), schedule[number - 1], prefix)
        x, groups = merge_tokens(x, groups, match)
        x = part.feed_forward(x)


@pytest.mark.parametrize('saliency', SALIENCIES)
@pytest.mark.parametrize('with_cls_token', [True, False])
def test_saliency_equals_a_plain_pass_with_the_groups_before_the_scored_layers_own_merge(with_cls_token, saliency):
    model, images = vit(with_cls_token=with_cls_token), torch.randn(3, 3, 32, 40)
    options = dict(num_merge=9, layer=4, inflection=-1.0, saliency=saliency)
    with torch.no_grad():
        scores = score_patches(build_vision_encoder(model), images, **options)
    expected, groups = plain_scores(model, images, [6, 3, 0], layer=4, saliency=saliency)
    torch.testing.assert_close(scores.saliency, expected, atol=1e-5, rtol=1e-4)
    assert scores.grid == (4, 5)
    assert torch.equal(scores.groups.index, groups.index)
    assert scores.num_kept_patches == 20 - 9
    assert scores.groups.size.size(1) == 20 - 9 + with_cls_token


def test_saliency_without_merging_is_the_class_tokens_attention():
    model, images = vit(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        scores = score_patches(build_vision_encoder(model), images, num_merge=0, layer=3)
    expected, _ = plain_scores(model, images, [0, 0, 0], layer=3)
    torch.testing.assert_close(scores.saliency, expected, atol=1e-6, rtol=1e-5)


def test_smaller_images_are_scored_and_their_saliency_lies_on_the_whole_grid():
    model, images = vit(img_size=64), torch.randn(2, 3, 64, 80)  # 8 x 10 patches, of which 6 x 8 are scored.
    options = dict(num_merge=8, layer=3, inflection=0.0, saliency='value_norm')
    with torch.no_grad():
        scores = score_patches(build_vision_encoder(model), images, **options, scale=0.75)
        small = F.interpolate(images, (48, 64), mode='area')
        expected, groups = plain_scores(model, small, [4, 4], layer=3, saliency='value_norm')
    assert groups.size.size(1) == 48 + 1 - 8
    assert scores.grid == (8, 10) and scores.num_kept_patches == 80
    expected = F.interpolate(expected.view(2, 1, 6, 8), (8, 10), mode='bilinear')
    torch.testing.assert_close(scores.saliency, expected.flatten(1), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize('saliency', SALIENCIES)
def test_the_training_pass_shows_the_saliency_of_the_scoring_pass(saliency):
    images, options = torch.randn(2, 3, 32, 32), dict(layer=3, saliency=saliency)
    plain = vit()
    tome = MODELS.build(dict(type='ToMeVisionTransformer', arch=ARCH, img_size=32, patch_size=8, out_type='raw'))
    tome.load_state_dict(plain.state_dict())
    tome.eval()
    for model, num_merge in ((plain, 0), (tome, 0), (tome, 12)):
        model.num_merge = num_merge
        with torch.no_grad(), recorded(model, images, **options) as recording:
            model(images)
        scores, _ = recording.finished()
        if num_merge:
            expected, _ = plain_scores(model, images, [3, 3, 3], layer=3, saliency=saliency)
        else:
            expected = score_patches(build_vision_encoder(plain), images, num_merge=0, **options).saliency
        torch.testing.assert_close(scores.saliency, expected, atol=1e-6, rtol=1e-5)


def test_the_mean_leaves_layers_with_windows_out():
    encoder, images = without_merging(windows=(2,)), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        mean = score_patches(encoder, images, num_merge=0, layer=3, saliency='mean').saliency
        rows = [score_patches(encoder, images, num_merge=0, layer=layer).saliency for layer in (1, 3)]
    torch.testing.assert_close(mean, sum(rows) / 2)


def test_the_pass_stops_at_the_scored_layer():
    model, called = vit(), []
    for number, layer in enumerate(model.layers, start=1):
        layer.ffn.register_forward_hook(lambda *_, number=number: called.append(number))
        layer.attn.qkv.register_forward_hook(lambda *_, number=number: called.append(f'qkv {number}'))
    with torch.no_grad():
        score_patches(build_vision_encoder(model), torch.randn(2, 3, 32, 32), num_merge=4, layer=3)
    assert called == ['qkv 1', 1, 'qkv 2', 2, 'qkv 3']


def test_default_layer_is_at_three_quarters_and_half_of_the_patches_merge_mostly_early():
    model, images = vit(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        scores = score_patches(build_vision_encoder(model), images)
    expected, _ = plain_scores(model, images, [6, 2], layer=3)
    torch.testing.assert_close(scores.saliency, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('size', [28, 12, 30])
def test_images_that_the_patches_do_not_tile_are_an_error_with_a_remedy(size):
    """MMPretrain pads 28 px to four patches of 8, which are then not where a grid of 7 px says."""
    with pytest.raises(ValueError, match=f'{size} x 32 pixels .* 8 x 8 patches .*pad_size_divisor=8'):
        score_patches(build_vision_encoder(vit()), torch.randn(2, 3, size, 32))


@pytest.mark.parametrize(
    ('with_cls_token', 'saliency'), [(True, 'attention'), (False, 'attention'), (True, 'mean'), (False, 'value_norm')]
)
def test_no_tensor_of_all_queries_by_all_keys_is_built(with_cls_token, saliency, monkeypatch):
    """Every tensor the pass makes, in Python or inside torch, stays below one [L, L] map."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                # Views of weights and expanded indices hold no memory of their own.
                if isinstance(tensor, torch.Tensor):
                    Largest.numel = max(Largest.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
            return out

    model, images = vit(with_cls_token=with_cls_token, img_size=512), torch.randn(1, 3, 512, 512)
    num_tokens = 64 * 64
    monkeypatch.setattr(F, 'scaled_dot_product_attention', lambda q, k, v, **_: v)
    with torch.no_grad(), Largest():
        score_patches(build_vision_encoder(model), images, num_merge=64 * 48, layer=4, saliency=saliency)
    assert 0 < Largest.numel < num_tokens**2 // 16


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(layer=5), r'layer=5 must be in \[1, 4\]'),
        (dict(layer=0), 'layer=0'),
        (dict(saliency='rollout'), "saliency='rollout' must be one of"),
        (dict(num_merge=16), r'num_merge=16 must be in \[0, 15\]: .* Merge fewer'),
        (dict(num_merge=2, layer=1), 'set layer >= 2'),
        (dict(num_merge=15, layer=2), 'num_merge=15, layer=2, .* 8 of 16 in all. Merge fewer tokens'),
    ],
)
def test_bad_arguments_are_errors_that_name_the_key(kwargs, message):
    with pytest.raises(ValueError, match=message), torch.no_grad():
        score_patches(build_vision_encoder(vit()), torch.randn(2, 3, 32, 32), **kwargs)


def without_merging(windows=()):
    """An encoder with rotary positions, whose layers of these numbers have windows, as far as scoring asks."""
    encoder = build_vision_encoder(vit())
    encoder.no_merge = 'rotary positions'
    for number in windows:
        encoder.layers[number - 1].is_global = False
    return encoder


def test_tokens_that_cannot_merge_are_scored_without_merging_and_a_warning_says_so():
    encoder, images = without_merging(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), pytest.warns(UserWarning, match='VisionTransformer.*rotary positions.*num_merge=0'):
        scores = score_patches(encoder, images)
    assert scores.num_kept_patches == 16
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('error')
        asked = score_patches(encoder, images, num_merge=0)
    assert torch.equal(scores.saliency, asked.saliency)
    with pytest.raises(ValueError, match='num_merge=4.*rotary positions.*num_merge=0'):
        score_patches(encoder, images, num_merge=4)


@pytest.mark.parametrize(('windows', 'scored'), [((), 3), ((3,), 2), ((1, 2, 3), 4), ((2, 3, 4), 1)])
def test_only_layers_of_global_attention_are_scored(windows, scored):
    encoder, images = without_merging(windows), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = score_patches(encoder, images, num_merge=0).saliency
        assert torch.equal(found, score_patches(encoder, images, num_merge=0, layer=scored).saliency)
    for layer in windows:
        with pytest.raises(ValueError, match=f'layer={layer}: .*windows.*VisionTransformer.*{scored}'):
            score_patches(encoder, images, num_merge=0, layer=layer)
