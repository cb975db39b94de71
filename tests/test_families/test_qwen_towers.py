"""Towers of the Qwen family: each image a row of patches, as the library computes them packed and block by block."""

import re
import sys
import warnings
from importlib.util import find_spec

import pytest
import tiny_vlms
import torch
from largest_tensor import LargestTensor
from mmengine.registry import MODELS
from torch import nn

from mergemix_mm.models import MergeMix
from mergemix_mm.models.vision_encoders import build_vision_encoder, run_layers, score_patches

# Tower -> tiny model, type of the model, options of the tower. Heads of 16 channels have four frequencies.
WIDE = dict(hidden_size=32, out_hidden_size=16, depth=4)
TOWERS = {
    'qwen2_vl': ('qwen2_5_vl', 'qwen2_vl', dict(embed_dim=32, hidden_size=16, mlp_ratio=2, depth=4)),
    'qwen2_5_vl': ('qwen2_5_vl', 'qwen2_5_vl', dict(WIDE, depth=5, fullatt_block_indexes=[1, 3], window_size=112)),
    'qwen3_vl': ('qwen3_vl', 'qwen3_vl', dict(WIDE, num_position_embeddings=25)),
    'qwen3_vl_moe': ('qwen3_vl', 'qwen3_vl_moe', dict(WIDE, num_position_embeddings=25)),
    'qwen3_5': ('qwen3_5', 'qwen3_5', dict(WIDE, num_position_embeddings=25)),
    'qwen3_5_moe': ('qwen3_5', 'qwen3_5_moe', dict(WIDE, num_position_embeddings=25)),
    'glm4v': ('glm4v', 'glm4v', dict(WIDE, out_hidden_size=32, image_size=70)),
    'glm4v_moe': ('glm4v', 'glm4v_moe', dict(WIDE, out_hidden_size=32, image_size=70)),
    'glm46v': ('glm4v', 'glm46v', dict(WIDE, out_hidden_size=32, image_size=70)),
}
TOWERS = {name: tower for name, tower in TOWERS.items() if find_spec(f'transformers.models.{tower[1]}')}
# In blocks of merged patches; windows of Qwen2.5-VL hold 4 x 4: less than one, one and less, several, ragged borders.
SIZES = [(1, 1), (3, 5), (4, 8), (9, 6)]


@pytest.fixture(scope='module', params=TOWERS)
def family(request):
    name, model_type, vision = TOWERS[request.param]
    found = tiny_vlms.model_of_type(name, model_type, vision)
    for parameter in found.vision_tower.parameters():
        nn.init.normal_(parameter, std=0.4)
    if name == 'glm4v':  # Its norms have no bias: small weights would leave nothing to compare.
        nn.init.ones_(found.vision_tower.post_layernorm.weight)
        for layer in found.vision_tower.blocks:
            nn.init.constant_(layer.norm1.weight, 0.6)
    return found


def block(family):
    vision = family.model.config.vision_config
    return vision.patch_size * vision.spatial_merge_size


def draw(family, *sizes):
    """Images of so many rows and columns of blocks."""
    side, generator = block(family), torch.Generator().manual_seed(0)
    return [torch.randn(3, rows * side, columns * side, generator=generator) for rows, columns in sizes]


@torch.no_grad()
def run_library(family, images):
    """The tower's own forward of all images in one batch."""
    size = family.vision_tower.config.patch_size
    grids = torch.tensor([(1, image.size(1) // size, image.size(2) // size) for image in images])
    family.vision_tower(torch.cat([family._patch(image) for image in images]), grids)


def by_rows(family, x, image, window=None):
    """Values [L, ...] in the order of the library, block by block (within windows of so many blocks) -> row by row."""
    config = family.vision_tower.config
    size, merge = config.patch_size, config.spatial_merge_size
    patches = [(row, column) for row in range(image.size(1) // size) for column in range(image.size(2) // size)]

    def place(patch):
        blocks = [position // merge for position in patch]
        return [position // window for position in blocks if window], blocks, patch

    order = sorted(range(len(patches)), key=lambda index: place(patches[index]))
    return torch.empty_like(x).index_copy(0, torch.tensor(order), x)


class TakesBlocks(nn.Module):
    """In place of the merger: keeps the tokens of a block, so that the library puts the blocks into their order."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        self.blocks = x.unflatten(0, (-1, self.size)).flatten(1)
        return self.blocks


class KeepsBlocks(nn.Module):
    """In place of GLM-4V's convolution of a block [N, C, rows, columns]: keeps all tokens, as its merger reads them."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).contiguous()


def test_tokens_after_all_layers_are_the_librarys(family, monkeypatch):
    tower, images = family.vision_tower, draw(family, *SIZES)
    encoder = build_vision_encoder(tower)
    merge = tower.config.spatial_merge_size
    monkeypatch.setitem(tower._modules, 'merger', TakesBlocks(merge**2))
    if hasattr(tower, 'downsample'):
        monkeypatch.setitem(tower._modules, 'downsample', KeepsBlocks())
    found = []
    handle = tower.register_forward_hook(lambda module, inputs, output: found.append(output))
    run_library(family, images)
    handle.remove()
    # transformers 5 returns all features under names; Qwen3-VL's under 4.57 come with those of DeepStack.
    output = getattr(found[0], 'pooler_output', found[0])
    output = output[0] if isinstance(output, tuple) else output
    tokens = output.unflatten(1, (merge**2, -1)).flatten(0, 1)
    lengths = [image[0].numel() // tower.config.patch_size**2 for image in images]
    for image, expected in zip(images, tokens.split(lengths), strict=True):
        with torch.no_grad():
            x, grid = encoder.embed(torch.stack([torch.zeros_like(image), image]))
            for x, _ in run_layers(encoder.layers, x, [0] * len(encoder.layers), 0):
                pass
            x = encoder.finish(x)
        assert grid[0] * grid[1] == x.size(1) and expected.std() > 0.5
        torch.testing.assert_close(x[1], by_rows(family, expected, image), atol=1e-5, rtol=1e-5)


def has_windows(family):
    return family.model.config.model_type == 'qwen2_5_vl'


def scored_layers(family):
    return [2, 4] if has_windows(family) else [1, 2, 3, 4]


def test_saliency_is_the_attention_received_in_the_librarys_eager_attention(family, monkeypatch):
    tower, images, maps = family.vision_tower, draw(family, *SIZES), []
    modeling = sys.modules[type(tower).__module__]
    eager = modeling.eager_attention_forward

    def record(module, *args, **kwargs):
        output, weights = eager(module, *args, **kwargs)
        maps.append((module, weights))
        return output, weights

    monkeypatch.setattr(modeling, 'eager_attention_forward', record)
    tower.set_attn_implementation('eager')
    run_library(family, images)
    tower.set_attn_implementation('sdpa')
    window = 4 if has_windows(family) else None
    for layer in scored_layers(family):
        own = [weights for module, weights in maps if module is tower.blocks[layer - 1].attn]
        for image, weights in zip(images, own, strict=True):  # One call of the library for each image.
            with torch.no_grad():
                saliency = score_patches(build_vision_encoder(tower), image[None], 0, layer).saliency[0]
            received = by_rows(family, weights[0].mean(dim=(0, 1)), image, window)
            torch.testing.assert_close(saliency, received, atol=1e-6, rtol=1e-4)
            assert len(received) == 4 or received.std() > 0.1 / len(received)


def test_layers_with_windows_are_not_scored_and_the_error_names_the_others(family):
    encoder, image = build_vision_encoder(family.vision_tower), draw(family, (2, 2))[0][None]
    allowed = scored_layers(family)
    for layer in range(1, len(encoder.layers) + 1):
        if layer not in allowed:
            with pytest.raises(ValueError, match=rf'layer={layer}: .*windows.*{re.escape(str(allowed))}'):
                score_patches(encoder, image, 0, layer)
    expected = max(layer for layer in allowed if layer <= -(-3 * len(encoder.layers) // 4))
    with torch.no_grad():
        default = score_patches(encoder, image, 0).saliency
        assert torch.equal(default, score_patches(encoder, image, 0, expected).saliency)


def test_no_tensor_of_all_patches_by_all_patches_is_built(family):
    image = draw(family, (32, 32))[0][None]
    with LargestTensor() as watch, torch.no_grad():
        scores = score_patches(build_vision_encoder(family.vision_tower), image, 0)
    # The largest one holds the pixels, twice: as two frames.
    assert scores.saliency.size(1) == 64**2 and watch.elements == 2 * image.numel() < 64**4 // 2


@pytest.mark.parametrize(('rows', 'columns'), [(1, 2), (2, 1), (0.25, 1)])
def test_images_that_are_not_whole_blocks_are_an_error(family, rows, columns):
    size = family.vision_tower.config.patch_size
    image = torch.zeros(1, 3, int(rows * size), int(columns * size))
    with pytest.raises(ValueError, match=f'{image.size(2)} x {image.size(3)} pixels are not a multiple'):
        MergeMix(num_merge=0).score(image, family.vision_tower)


def test_scoring_without_merging_is_said_once_and_merging_is_an_error(family):
    tower, image = family.vision_tower, draw(family, (2, 3))[0][None]
    assert build_vision_encoder(tower).image_size is None
    with pytest.warns(UserWarning, match='cannot merge.*rotary positions.*num_merge=0'):
        scores = MergeMix().score(image, tower)
    assert scores.grid == (4, 6) and scores.num_kept_patches == 24
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(MergeMix(mask='topk').score(image, tower).saliency, scores.saliency)
    with pytest.raises(ValueError, match='num_merge=4.*rotary positions'):
        MergeMix(num_merge=4).score(image, tower)


@pytest.mark.parametrize('name', TOWERS)
def test_mixed_simpo_scores_with_the_models_own_tower(name):
    tiny, model_type, vision = TOWERS[name]
    config = tiny_vlms.config_of_type(tiny, model_type)
    config['vision_config'] |= vision
    torch.manual_seed(0)
    vlm = dict(type='HFVisionLanguageModel', config=config)
    tuner = MODELS.build(dict(type='VLMTuner', vlm=vlm, head=dict(type='SimPOHead'), mixer=dict(type='MergeMix')))
    shown = [tiny_vlms.random_image(*size, seed) for seed, size in enumerate([(56, 84), (90, 60), (56, 84), (64, 96)])]
    samples = [(shown[:2], 'which?', ' both'), ([], 'hello', ' you'), (shown[2:3], 'a?', ' no'), (shown[3:], 'b?', 'd')]
    batch = tiny_vlms.tiny_batch(tiny, samples)
    calls = []
    tower = tuner.vlm.vision_encoder
    tower.patch_embed.register_forward_hook(lambda *_: calls.append('embed'))
    for index, part in enumerate(tower.blocks):
        part.register_forward_hook(lambda *_, index=index: calls.append(f'block {index}'))
        part.attn.qkv.register_forward_hook(lambda *_, index=index: calls.append(f'qkv {index}'))
    found = []
    for _ in range(2):
        calls.clear()
        torch.manual_seed(0)
        found.append({key: value.item() for key, value in tuner.loss(batch).items()})
    assert found[0] == found[1] and all(torch.tensor(list(found[0].values())).isfinite())
    result = tuner.mix_result
    sizes = len({image.shape for image in result.images})
    assert result.owner.tolist() == [0, 0, 2, 3] and result.mixed.all() and sizes >= 2
    assert found[0]['reward_margin'] != 0 and ((result.ratio > 0) & (result.ratio < 1)).any()
    # The clean and the mixed pass, and one pass per image size up to the scored layer.
    scored = 4 if has_windows(tuner.vlm.family) else 3
    assert calls.count('embed') == 2 + sizes and calls.count('block 0') == 2
    assert (
        calls.count(f'qkv {scored - 1}') == 2 + sizes
        and calls.count(f'qkv {scored}') == (scored < len(tower.blocks)) * 2
    )


@torch.no_grad()
def test_smaller_images_of_whole_blocks_are_scored(family):
    (image,) = draw(family, (3, 5))
    encoder = build_vision_encoder(family.vision_tower)
    scores = score_patches(encoder, image[None], num_merge=0, scale=0.5)  # 2 x 2 blocks.
    assert scores.grid == encoder.patch_grid(image[None]) and scores.saliency.shape == (
        1,
        scores.grid[0] * scores.grid[1],
    )
    assert (scores.saliency > 0).all()
