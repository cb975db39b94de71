"""The mix of embeddings: its tokens in order, its maps, and life behind any backbone."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from mergemix_mm.models import EmbeddingMixNeck, TokenMap

# SPHINX's encoders, 1 / 128 as wide: CLIP ViT-L, CLIP ConvNeXt-XXL, DINOv2 ViT-g; the Q-Former.
WIDTHS, QFORMER, OUT = (8, 24, 12), 6, 32
GRIDS = (16, 8, 16)


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sphinx_inputs():
    clip, convnext, dino = (random(2, c, g, g, seed=i) for i, (c, g) in enumerate(zip(WIDTHS, GRIDS, strict=True)))
    tokens = [random(2, c, seed=10 + c) for c in WIDTHS]
    qformer = random(2, 32, QFORMER, seed=3)
    return TokenMap(clip, tokens[0]), TokenMap(convnext), TokenMap(dino, tokens[2]), qformer


def sphinx_neck(**kwargs):
    torch.manual_seed(0)
    neck = EmbeddingMixNeck(WIDTHS, OUT, **(dict(sequence_channels=[QFORMER], grid=16, class_token=True) | kwargs))
    for parameter in neck.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return neck


def reference(neck, inputs):
    """SPHINX's tokens, written out for its four encoders."""
    clip, convnext, dino, qformer = inputs
    upsampled = F.interpolate(convnext.features, size=(16, 16), mode='bilinear', align_corners=False)
    sequences = []
    for features, first in ((clip.features, clip.class_token), (dino.features, dino.class_token)):
        sequences.append(torch.cat([first.unsqueeze(1), features.flatten(2).transpose(1, 2)], dim=1))
    mean = convnext.features.mean(dim=(2, 3)).unsqueeze(1)
    sequences.insert(1, torch.cat([mean, upsampled.flatten(2).transpose(1, 2)], dim=1))
    linear, norm = neck.projection
    visual = F.layer_norm(
        F.linear(torch.cat(sequences, dim=2), linear.weight, linear.bias), [OUT], norm.weight, norm.bias
    )
    linear, norm = neck.sequence_projections[0]
    queries = F.layer_norm(F.linear(qformer, linear.weight, linear.bias), [OUT], norm.weight, norm.bias)
    return torch.cat([queries, visual], dim=1)


def test_sphinx_gives_289_tokens_queries_first_then_class_then_patches():
    neck, inputs = sphinx_neck(), sphinx_inputs()
    tokens = neck(inputs)
    assert tokens.shape == (2, 32 + 1 + 256, OUT)
    torch.testing.assert_close(tokens, reference(neck, inputs))


def test_sequences_stand_in_front_wherever_their_encoder_is():
    neck, (clip, convnext, dino, qformer) = sphinx_neck(), sphinx_inputs()
    assert torch.equal(neck((qformer, clip, convnext, dino)), neck((clip, convnext, qformer, dino)))


def test_several_sequences_have_projections_of_their_own_and_keep_their_order():
    neck = sphinx_neck(sequence_channels=[QFORMER, 4])
    *maps, qformer = sphinx_inputs()
    other = random(2, 5, 4, seed=9)
    tokens = neck((qformer, *maps, other))
    assert tokens.shape == (2, 32 + 5 + 1 + 256, OUT)
    torch.testing.assert_close(tokens[:, 32:37], neck.sequence_projections[1](other))


def test_without_class_token_and_sequences_there_are_patches_alone():
    with_all, without = sphinx_neck(), sphinx_neck(class_token=False, sequence_channels=())
    without.projection.load_state_dict(with_all.projection.state_dict())
    inputs = sphinx_inputs()
    torch.testing.assert_close(without(inputs[:3]), with_all(inputs)[:, 33:])


def test_fuse_mlp_is_three_layers_the_first_four_times_as_wide():
    neck, inputs = sphinx_neck(fuse='mlp'), sphinx_inputs()
    assert [tuple(p.shape) for p in neck.projection.parameters() if p.ndim == 2] == [(176, 44), (OUT, 176), (OUT, OUT)]
    first, _, second, _, third, norm = neck.projection
    mixed = torch.cat([F.interpolate(m.features, size=(16, 16), mode='bilinear') for m in inputs[:3]], dim=1)
    patches = norm(third(F.gelu(second(F.gelu(first(mixed.flatten(2).transpose(1, 2)))))))
    torch.testing.assert_close(neck(inputs)[:, 33:], patches, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('fuse', ['concat', 'mlp'])
def test_without_norm_the_projection_ends_with_its_linear_layer(fuse):
    neck = sphinx_neck(norm=False, fuse=fuse)
    assert not any(isinstance(module, torch.nn.LayerNorm) for module in neck.modules())
    assert isinstance(neck.projection[-1], torch.nn.Linear)
    assert neck(sphinx_inputs()).shape == (2, 289, OUT)


def test_without_grid_the_finest_map_gives_it():
    neck = EmbeddingMixNeck([2, 3], 4)
    assert neck((torch.zeros(1, 2, 4, 6), torch.zeros(1, 3, 5, 3))).shape == (1, 24, 4)


def test_a_map_has_the_values_of_the_tokens_in_their_places():
    inputs = sphinx_inputs()[:3]
    tokens = sphinx_neck(class_token=False, sequence_channels=())(inputs)
    (featmap,) = sphinx_neck(class_token=False, sequence_channels=(), output='featmap')(inputs)
    assert featmap.shape == (2, OUT, 16, 16)
    for row, column in ((0, 0), (3, 11), (15, 14)):
        assert torch.equal(featmap[:, :, row, column], tokens[:, 16 * row + column])


def test_every_scale_is_a_level_through_the_same_projection():
    inputs = sphinx_inputs()[:3]
    options = dict(class_token=False, sequence_channels=(), output='featmap')
    neck = sphinx_neck(**options, scales=(2.0, 1, 0.5))
    levels = neck(inputs)
    assert [level.shape[-2:] for level in levels] == [(32, 32), (16, 16), (8, 8)]
    for level, grid in zip(levels, (32, 16, 8), strict=True):
        torch.testing.assert_close(level, sphinx_neck(**options, grid=grid)(inputs)[0])


def test_levels_of_an_odd_grid_are_rounded_up():
    neck = EmbeddingMixNeck([2], 4, grid=(7, 5), output='featmap', scales=(1, 0.5, 0.01))
    assert [level.shape[-2:] for level in neck((torch.zeros(1, 2, 7, 5),))] == [(7, 5), (4, 3), (1, 1)]


SCALES = (2, 1, 0.5, 0.25, 0.125)
STRIDES = (8, 16, 32, 64, 128)


def positions(height, width, stride, rounding=math.ceil):
    """A map [1, 2, h, w] whose cells hold the place of their centre, y and x, in pixels; and its cell."""
    rows, columns = (rounding(side / stride) for side in (height, width))
    y, x = ((torch.arange(n) + 0.5) * stride for n in (rows, columns))
    features = torch.stack(torch.meshgrid(y, x, indexing='ij'))[None]
    return TokenMap(features).with_cell((stride, stride))


def reading_neck(num_maps, scales=SCALES):
    """A neck that hands on the positions that the last map says."""
    neck = EmbeddingMixNeck([2] * num_maps, 2, output='featmap', scales=scales, norm=False)
    weight = torch.zeros(2, 2 * num_maps)
    weight[:, -2:] = torch.eye(2)
    neck.projection[0].weight.data, neck.projection[0].bias.data = weight, torch.zeros(2)
    return neck


SIZES = [(800, 1344), (800, 1333), (464, 1200), (816, 1072), (1024, 1024), (80, 96)]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(('stride', 'rounding'), [(16, math.ceil), (32, math.ceil), (32, math.floor), (64, math.floor)])
def test_levels_are_where_the_anchors_are(size, stride, rounding):
    # The first map is a ViT's, of patches of 16 pixels; the second a CNN's: a ResNet rounds up, a ConvNeXt down.
    padded = tuple(-(-side // 16) * 16 for side in size)
    maps = [positions(*padded, 16), positions(*padded, stride, rounding)]
    with torch.no_grad():
        levels = reading_neck(2)(maps)
    for level, level_stride in zip(levels, STRIDES, strict=True):
        assert level.shape[-2:] == tuple(-(-side // level_stride) for side in padded)
        reach = max(level_stride, stride)  # Cells nearer to a border average over what there is.
        for axis, side in enumerate(padded):
            centres = (torch.arange(level.shape[2 + axis]) + 0.5) * level_stride
            known = level[0, axis].movedim(axis, 0).flatten(1)
            covered = maps[1].features.shape[2 + axis] * stride
            inside = (centres >= reach) & (centres <= min(side, covered) - reach)
            torch.testing.assert_close(known[inside], centres[inside, None].expand_as(known[inside]), rtol=0, atol=0.05)
            assert ((known - centres[:, None]).abs() <= 1.5 * reach).all()


def test_the_levels_of_800_x_1344_pixels_have_their_centres_at_these_pixels():
    with torch.no_grad():
        levels = reading_neck(1)([positions(800, 1344, 16)])
    assert [tuple(level.shape[-2:]) for level in levels] == [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
    rows = [level[0, 0, 1:4, 5].tolist() for level in levels]
    assert rows[1] == pytest.approx([24, 40, 56]) and rows[2] == pytest.approx([48, 80, 112])
    assert rows[3] == pytest.approx([96, 160, 224]) and rows[4] == pytest.approx([192, 320, 448])
    # The seventh row lies around 832, of which there are pixels up to 800: nearer to the border than the sixth's 704.
    assert levels[4][0, 0, 5, 5] == pytest.approx(704, abs=4) and 740 < levels[4][0, 0, 6, 5] < 800


def test_levels_have_the_sizes_that_the_anchor_generator_of_the_config_expects():
    pytest.importorskip('mmdet')
    from mmdet.models.task_modules import AnchorGenerator

    generator = AnchorGenerator(STRIDES, [1.0], scales=[1.0], center_offset=0.5)
    with torch.no_grad():
        levels = reading_neck(1)([positions(1024, 1536, 16)])
    anchors = generator.grid_priors([level.shape[-2:] for level in levels], device='cpu')
    for level, boxes, stride in zip(levels, anchors, STRIDES, strict=True):
        centres = boxes.view(-1, 2, 2).mean(dim=1).flip(1).reshape(*level.shape[-2:], 2)
        found = level[0].movedim(0, -1)
        torch.testing.assert_close(found[2:-2, 2:-2], centres[2:-2, 2:-2], rtol=0, atol=0.05)
        assert boxes[0].tolist() == [0, 0, stride, stride]


def test_whole_cells_are_resampled_as_before():
    maps = [random(1, 3, 48, 64, seed=1), random(1, 2, 24, 32, seed=2)]
    for level, size in zip(EmbeddingMixNeck([3, 2], 4, output='featmap', scales=SCALES)(maps), (96, 48, 24, 12, 6)):
        assert level.shape[-2:] == (size, size * 4 // 3)
    neck = EmbeddingMixNeck([3, 2], 4, output='featmap', scales=(0.5,))
    mixed = torch.cat([F.interpolate(m, size=(24, 32), mode='bilinear', antialias=True) for m in maps], dim=1)
    torch.testing.assert_close(neck(maps)[0], neck.projection(mixed.movedim(1, -1)).movedim(-1, 1))


def test_the_stages_of_a_cnn_lie_over_each_other_where_it_rounds_up():
    # 101, 51 and 26 rows of stride 8, 16 and 32: 808, 816 and 832 pixels. Without cells, the finest is the unit.
    stages = [positions(808, 1000, stride).features / 8 for stride in (8, 16, 32)]
    (level,) = reading_neck(3, scales=(1,))(stages)
    assert level.shape[-2:] == (101, 125)
    torch.testing.assert_close(level[0, 0, 4:-4, 0], torch.arange(4, 97) + 0.5)


def test_maps_of_a_resized_image_are_stretched_over_it():
    fine = positions(160, 320, 16)
    square = TokenMap(positions(160, 160, 32).features).with_cell((32, 64))  # 5 x 5 cells over the whole image.
    (level,) = reading_neck(2, scales=(1,))([fine, square])
    torch.testing.assert_close(2 * level[0, 1, 0, 2:-2], fine.features[0, 1, 0, 2:-2])


def test_gradient_reaches_every_encoder_and_parameter():
    neck = sphinx_neck()
    maps = [random(1, c, g, g, seed=c).requires_grad_() for c, g in zip(WIDTHS, GRIDS, strict=True)]
    queries = random(1, 32, QFORMER, seed=1).requires_grad_()
    (neck((*maps, queries)) * random(1, 289, OUT, seed=2)).sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in (*maps, queries, *neck.parameters()))


def test_under_autocast_half_precision_maps_mix_with_float32_weights():
    neck, inputs = sphinx_neck(), sphinx_inputs()
    with torch.autocast('cpu', torch.bfloat16):
        tokens = neck(inputs)
    torch.testing.assert_close(tokens.float(), neck(inputs), atol=0.1, rtol=0.1)


def test_alone_behind_the_stages_of_a_resnet_it_trains():
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='ResNet', depth=18, base_channels=4, out_indices=(1, 2, 3)),
            neck=[
                dict(type='EmbeddingMixNeck', in_channels=[8, 16, 32], out_channels=16, output='featmap'),
                dict(type='GlobalAveragePooling'),
            ],
            head=dict(type='LinearClsHead', num_classes=3, in_channels=16),
        )
    )
    images = torch.randn(2, 3, 64, 64)
    (featmap,) = model.neck[0](model.backbone(images))
    assert featmap.shape == (2, 16, 8, 8)
    model.loss(images, [DataSample().set_gt_label(1)] * 2)['loss'].backward()
    assert model.neck[0].projection[0].weight.grad.abs().sum() > 0
    assert model.backbone.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(in_channels=[]), 'in_channels is empty'),
        (dict(in_channels=[True]), 'in_channels=True must be an integer of at least 1'),
        (dict(in_channels=8), 'in_channels=8 must be a list'),
        (dict(out_channels=1.5), r'out_channels=1\.5 must be an integer of at least 1'),
        (dict(grid=(2, True)), r'grid=\(2, True\) must be an integer >= 1'),
        (dict(grid=1.5), r'grid=1\.5 must be an integer >= 1'),
        (dict(fuse='sum'), "fuse='sum' must be one of"),
        (dict(output='grid'), "output='grid' must be one of"),
        (dict(grid=0), 'grid=0'),
        (dict(scales=(2, 1)), r"scales=\(2, 1\) are levels of output='featmap'"),
        (dict(output='featmap', scales=()), r'scales=\(\) must be numbers above 0'),
        (dict(output='featmap', scales=(1, 0)), r'scales=\(1, 0\) must be numbers above 0'),
        (dict(output='featmap', class_token=True), "class_token=True has no place in a map; set output='tokens'"),
        (dict(output='featmap', sequence_channels=[6]), r"sequence_channels=\[6\].*Set output='tokens', or leave"),
    ],
)
def test_arguments_that_do_not_go_together_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingMixNeck(**(dict(in_channels=[8], out_channels=4) | options))


@pytest.mark.parametrize(
    ('inputs', 'message'),
    [
        ((torch.zeros(1, 8, 2, 2),), r'in_channels=\[8, 4\], but the backbone gives channels \[8\]'),
        ((torch.zeros(1, 4, 2, 2), torch.zeros(1, 8, 2, 2)), r'gives channels \[4, 8\]'),
        (
            (torch.zeros(1, 8, 2, 2), torch.zeros(1, 4, 2, 2), torch.zeros(1, 5, 6)),
            r'sequence_channels=\[\], but the backbone gives channels \[6\]',
        ),
        ((torch.zeros(1, 8), torch.zeros(1, 4, 2, 2)), r'maps \[B, C, h, w\] and sequences .*got \[1, 8\]'),
        (TokenMap(torch.zeros(1, 8, 2, 2)), 'got NoneType'),
    ],
)
def test_inputs_other_than_the_channels_say_are_errors(inputs, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingMixNeck([8, 4], 4)(inputs)
