"""SPHINX: its tokens in order, views, markers, what trains, generation, and its files."""

import pytest
import tiny_sphinx
import tiny_vlms
import torch
from mmengine.registry import MODELS

from mergemix_mm.functional import split_views
from mergemix_mm.models.attention import InteractionRecorder
from mergemix_mm.models.attention.interaction_attention import NAME
from mergemix_mm.models.vlms import IMAGE, MARKER, PAD, TEXT, SphinxModel
from mergemix_mm.models.vlms.sphinx import causal_head

SQUARE, WIDE = tiny_vlms.random_image(40, 40, 0), tiny_vlms.random_image(10, 40, 1)


def build(**kwargs):
    torch.manual_seed(0)
    return MODELS.build(tiny_sphinx.sphinx_config(**kwargs)).eval()


def encode(samples, mixed=False, grid=1, generate=False, **kwargs):
    processor = tiny_sphinx.processor(mixed, grid, **kwargs)
    return tiny_sphinx.batch(processor, samples, generate=generate)['inputs']


def embedded(vlm, batch):
    """The rows of the language model's input for the first image, markers included."""
    is_text = batch['input_ids'][0] < vlm.family.image_token_id
    return vlm.family.model.embed(batch['input_ids'], batch.get('pixel_values'))[0][~is_text]


# Tokens and their order.


@torch.no_grad()
def test_the_four_encoders_make_289_tokens_between_two_markers():
    vlm = build(mixed=True)
    batch = encode([([SQUARE], 'what?', 'a')], mixed=True)
    rows = embedded(vlm, batch)
    assert rows.shape == (291, tiny_sphinx.WIDTH)
    network = vlm.family.model
    start, end, _ = network.markers.weight
    assert torch.equal(rows[0], start) and torch.equal(rows[-1], end)

    maps = network.vision.backbone(batch['pixel_values'])
    neck = network.vision.neck
    queries = neck.sequence_projections[0](maps[3])[0]
    assert torch.allclose(rows[1:33], queries, atol=1e-6)
    own = [one.class_token for one in (maps[0], maps[2])]
    class_token = torch.cat([own[0], maps[1].features.mean((2, 3)), own[1]], dim=1)
    assert torch.allclose(rows[33], neck.projection(class_token)[0], atol=1e-6)
    upsampled = torch.nn.functional.interpolate(maps[1].features, (16, 16), mode='bilinear', antialias=True)
    patches = torch.cat([maps[0].features, upsampled, maps[2].features], dim=1)
    # Row by row.
    for row, column in ((0, 0), (0, 1), (1, 0), (15, 15)):
        expected = neck.projection(patches[0, :, row, column])
        assert torch.allclose(rows[34 + 16 * row + column], expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('grid', [2, 3])
def test_views_follow_each_other_whole_image_first(grid):
    vlm = build(mixed=True, grid=grid)
    batch = encode([([SQUARE], 'what?', 'a')], mixed=True, grid=grid)
    rows = embedded(vlm, batch)
    assert len(rows) == (1 + grid**2) * 291
    views = split_views(batch['pixel_values'], grid, 32)[0]
    for view, pixels in zip(rows.split(291), views, strict=True):
        alone = vlm.family.model.vision.neck(vlm.family.model.vision.backbone(pixels[None]))[0]
        assert torch.allclose(view[1:-1], alone, atol=1e-5)


@torch.no_grad()
def test_pooled_crops_make_687_tokens():
    vlm = build(mixed=True, grid=2, crop_pool=2)
    batch = encode([([SQUARE], 'what?', 'a')], mixed=True, grid=2, crop_tokens=32 + 1 + 64)
    rows = embedded(vlm, batch)
    assert len(rows) == 687 == 291 + 4 * 99
    vision = vlm.family.model.vision
    second = split_views(batch['pixel_values'], 2, 32)[0, 2:3]
    whole = vision.neck(vision.backbone(second))[0]
    view = rows[291 + 99 : 291 + 2 * 99]
    assert torch.allclose(view[1:34], whole[:33], atol=1e-5)
    # The pooled patch in row 3, column 5 is the mean of four.
    patches = whole[33:].view(16, 16, -1)
    assert torch.allclose(view[34 + 8 * 3 + 5], patches[6:8, 10:12].mean((0, 1)), atol=1e-5)


@torch.no_grad()
def test_views_of_padding_are_one_skip_token_and_are_not_encoded():
    vlm = build(mixed=True, grid=3)
    seen = []
    encoders = vlm.family.model.vision.backbone.branches
    hooks = [one.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0]))) for one in encoders]
    # A quarter of the square: the middle row of three, beside a square image with all of its views.
    batch = encode([([WIDE], 'what?', 'a'), ([SQUARE], 'and?', 'b')], mixed=True, grid=3)
    rows = embedded(vlm, batch)
    for hook in hooks:
        hook.remove()
    assert seen == [4 + 10] * 4  # One call per encoder, without the six views of padding.
    assert len(rows) == 4 * 291 + 6
    skip = vlm.family.model.markers.weight[2]
    assert (rows == skip).all(dim=1).nonzero().flatten().tolist() == [
        *range(291, 294),
        *range(4 * 291 + 3, 4 * 291 + 6),
    ]


@torch.no_grad()
def test_what_a_batch_says_of_its_tokens():
    vlm = build(grid=2)
    batch = encode([([SQUARE, WIDE], 'what?', 'a'), ([], 'who?', 'bb')], grid=2)
    modality = vlm.modality(batch)
    ids = batch['input_ids']
    assert torch.equal(modality == IMAGE, ids == vlm.family.image_token_id)
    assert torch.equal(modality == MARKER, ids > vlm.family.image_token_id)
    assert torch.equal(modality == PAD, batch['attention_mask'] == 0)
    assert (modality == TEXT).any(dim=1).all()
    canvases, owners = vlm.canvases(batch)
    assert [list(canvas.shape) for canvas in canvases] == [[3, 56, 56]] * 2 and owners.tolist() == [0, 0]


@torch.no_grad()
@pytest.mark.parametrize('side', ['left', 'right'])
def test_the_batch_around_a_sample_changes_nothing(side):
    vlm = build(mixed=True, grid=2)
    samples = [([WIDE], 'what is this?', 'a'), ([SQUARE], 'who?', 'b'), ([], 'hello', 'you')]
    whole = encode(samples, mixed=True, grid=2)
    if side == 'left':
        order = whole['attention_mask'].argsort(dim=1, stable=True)
        whole |= {key: whole[key].gather(1, order) for key in ('input_ids', 'attention_mask', 'labels')}
    hidden = vlm.hidden(vlm.prepare(whole))
    for i, sample in enumerate(samples):
        alone = encode([sample], mixed=True, grid=2)
        expected = vlm.hidden(vlm.prepare(alone))[0]
        assert torch.allclose(hidden[i][whole['attention_mask'][i].bool()], expected, atol=1e-4)


@torch.no_grad()
def test_other_canvases_change_the_pixels_alone():
    vlm = build(grid=2)
    batch = encode([([SQUARE], 'what?', 'a'), ([WIDE], 'what?', 'a')], grid=2)
    canvases, _ = vlm.canvases(batch)
    other = vlm.with_canvases(batch, [canvases[1], canvases[0]])
    assert torch.equal(other['pixel_values'], batch['pixel_values'].flip(0))
    assert all(other[key] is batch[key] for key in batch if key != 'pixel_values')
    assert not torch.allclose(vlm.hidden(other), vlm.hidden(batch))
    with pytest.raises(ValueError, match='cannot replace those'):
        vlm.with_canvases(batch, canvases[:1])


# What trains.


def test_frozen_encoders_stay_as_they_are_whatever_trains():
    vlm = build(mixed=True)
    vlm.train()
    branches = vlm.family.model.vision.backbone.branches
    before = {name: value.clone() for name, value in branches.state_dict().items()}
    assert not any(module.training for branch in branches for module in branch.encoder.modules())
    batch = encode([([SQUARE], 'what?', 'a'), ([WIDE], 'who?', 'b')], mixed=True)
    optimizer = torch.optim.SGD(vlm.parameters(), lr=0.1)
    vlm.hidden(batch).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in branches.state_dict().items())
    moved = {name for name, parameter in vlm.named_parameters() if parameter.grad is not None}
    assert any('vision.neck' in name for name in moved) and any('markers' in name for name in moved)
    assert not any('branches' in name for name in moved)


@pytest.mark.parametrize(
    'trainable, expected',
    [
        (['projector'], {'vision.neck', 'markers'}),
        (['language_model'], {'language_model'}),
        (['vision_tower', 'projector'], {'vision.backbone', 'vision.neck', 'markers'}),
    ],
)
def test_the_parts_that_train_are_those_of_the_config(trainable, expected):
    config = tiny_sphinx.sphinx_config(trainable=trainable)
    config['backbone']['encoders'][0]['frozen'] = False
    vlm = MODELS.build(config)
    names = {name.removeprefix('model.') for name, one in vlm.named_parameters() if one.requires_grad}
    assert {next(part for part in expected if name.startswith(part)) for name in names} == expected
    language_model = vlm.family.model.language_model
    assert language_model.model.training == ('language_model' in trainable)
    assert language_model.lm_head.weight.requires_grad == ('language_model' in trainable)


def test_a_tower_of_frozen_encoders_cannot_train():
    with pytest.raises(ValueError, match=r"trainable=\['vision_tower'\].*frozen=False"):
        build(trainable=['vision_tower'])


def test_lora_trains_adapters_and_the_projector():
    vlm = build(lora=dict(r=2))
    trained = {name for name, one in vlm.named_parameters() if one.requires_grad}
    assert any('lora_A' in name for name in trained) and any('neck' in name for name in trained)
    assert all('lora_' in name for name in trained if 'language_model' in name)
    batch = encode([([SQUARE], 'what?', 'a')])
    vlm.train().hidden(batch).sum().backward()
    assert all(one.grad is not None for name, one in vlm.named_parameters() if name in trained)
    with pytest.raises(ValueError, match='--merge-lora'):
        vlm.save_pretrained('nowhere')


def test_gradient_checkpointing_changes_no_gradient():
    grads = []
    for checkpointing in (False, True):
        vlm = build(gradient_checkpointing=checkpointing).train()
        vlm.hidden(encode([([SQUARE], 'what?', 'a')])).square().sum().backward()
        grads.append(vlm.family.model.vision.neck.projection[0].weight.grad)
    assert torch.allclose(*grads, atol=1e-6)


# Generation and heads.


@torch.no_grad()
def test_generation_is_greedy_search_over_its_own_logits():
    vlm = build(grid=2)
    batch = encode([([WIDE], 'what?', 'a'), ([SQUARE], 'and who is this?', 'b')], grid=2, generate=True)
    found = vlm.generate(batch, max_new_tokens=3, eos_token_id=None)
    for i in range(2):
        ids = batch['input_ids'][i][batch['attention_mask'][i].bool()]
        total = 0.0
        for token in found.sequences[i]:
            one = dict(input_ids=ids[None], attention_mask=torch.ones_like(ids[None]))
            logps = vlm.head(vlm.hidden(one | dict(pixel_values=batch['pixel_values'][i : i + 1])))[0, -1].log_softmax(
                0
            )
            assert logps.argmax() == token
            total += float(logps[token])
            ids = torch.cat([ids, token[None]])
        assert found.logps[i].item() == pytest.approx(total, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    'model_type, options',
    [
        ('gemma2', dict(head_dim=4, final_logit_softcapping=3.0, query_pre_attn_scalar=4)),
        ('cohere', dict(logit_scale=0.25)),
        ('granite', dict(logits_scaling=4.0)),
        ('gpt2', dict(n_embd=16, n_layer=2, n_head=2)),
        ('qwen2', {}),
    ],
)
def test_heads_give_the_logits_of_the_library(model_type, options):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = tiny_sphinx.language_config() | dict(tie_word_embeddings=True)
    sizes.pop('model_type')
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes | options)).eval()
    ids = torch.randint(VOCAB := tiny_sphinx.VOCAB_SIZE, (2, 5))
    expected = model(input_ids=ids).logits
    assert expected.shape[-1] == VOCAB
    assert torch.allclose(causal_head(model)(model.base_model(input_ids=ids).last_hidden_state), expected, atol=1e-5)


# Files and errors.


@torch.no_grad()
def test_saved_and_read_it_gives_the_same(tmp_path):
    vlm = build(grid=2)
    vlm.save_pretrained(tmp_path / 'model')
    assert sorted(path.name for path in (tmp_path / 'model').iterdir()) == [
        'config.json',
        'language_model',
        'vision.safetensors',
    ]
    config = tiny_sphinx.sphinx_config(grid=2, language_model=None, pretrained=str(tmp_path / 'model'))
    again = MODELS.build(config).eval()
    # Frozen encoders come from where the config has them.
    again.family.model.vision.backbone.load_state_dict(vlm.family.model.vision.backbone.state_dict())
    batch = encode([([SQUARE], 'what?', 'a')], grid=2)
    assert torch.equal(vlm.hidden(batch), again.hidden(batch))


@torch.no_grad()
def test_a_folder_says_all_that_its_model_was_built_of(tmp_path):
    vit = dict(
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=16),
        img_size=28,
        patch_size=14,
        out_type='raw',
    )
    config = tiny_sphinx.sphinx_config(grid=2)
    config['backbone'] = dict(type='MultiBackbone', encoders=[dict(encoder=vit, frozen=False)])
    vlm = MODELS.build(config).eval()
    vlm.save_pretrained(tmp_path / 'model')
    again = SphinxModel(pretrained=str(tmp_path / 'model')).eval()
    again.init_weights()  # The Runner calls it: encoders of OpenMMLab must not start anew.
    batch = encode([([SQUARE], 'what?', 'a')], grid=2)
    assert torch.equal(vlm.hidden(batch), again.hidden(batch))
    one_view = SphinxModel(pretrained=str(tmp_path / 'model'), grid=1)
    assert one_view.family.model.vision.num_views == 1
    with pytest.raises(OSError, match='is no folder that save_pretrained wrote'):
        SphinxModel(pretrained=str(tmp_path / 'model/language_model'))


def test_what_a_folder_does_not_say_has_to_be_given(tmp_path):
    build().save_pretrained(tmp_path / 'model')
    with pytest.raises(ValueError, match=r'backbone must be given: .*config\.json does not say them'):
        SphinxModel(pretrained=str(tmp_path / 'model'))


def test_encoders_that_train_are_saved_and_others_are_refused(tmp_path):
    config = tiny_sphinx.sphinx_config()
    config['backbone']['encoders'][0]['frozen'] = False
    vlm = MODELS.build(config)
    vlm.save_pretrained(tmp_path / 'model')
    other = tiny_sphinx.sphinx_config(language_model=None, pretrained=str(tmp_path / 'model'))
    with pytest.raises(ValueError, match=r'is of another model: it lacks \[\], has besides \[.*branches\.0'):
        MODELS.build(other)
    other['backbone']['encoders'][0]['frozen'] = False
    again = MODELS.build(other)
    for name, value in vlm.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_language_model_of_a_folder_can_be_exchanged(tmp_path):
    vlm = build()
    vlm.save_pretrained(tmp_path / 'model')
    mixed = tiny_sphinx.sphinx_config(pretrained=str(tmp_path / 'model'))
    torch.manual_seed(1)
    again = MODELS.build(mixed)
    assert torch.equal(again.family.model.markers.weight, vlm.family.model.markers.weight)
    assert not torch.equal(again.head.weight, vlm.head.weight)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(grid=4), r'grid=4 must be one of \(1, 2, 3\)'),
        (dict(crop_pool=2), r'crop_pool=2 needs crops \(grid=1'),
        (dict(image_token_id=-1), 'image_token_id=-1 must be an integer of at least 0'),
        (dict(image_token_id=1 << 80), 'image_token_id=1208925819614629174706176 must be an integer'),
        (dict(grid=True), r'grid=True must be one of \(1, 2, 3\)'),
        (dict(grid=2, crop_pool=True), 'crop_pool=True needs crops'),
        (dict(grid=2, crop_pool=float('nan')), 'crop_pool=nan needs crops'),
        (dict(grid=2, crop_pool='2'), "crop_pool='2' needs crops"),
        (dict(grid=2, crop_pool=3), 'must divide neck.grid=2'),
        (dict(language_model=None), 'language_model must be given, or pretrained='),
        (dict(image_token_id=None), 'image_token_id must be given'),
        (dict(language_model=dict(config=dict(model_type='llava'))), "model_type='llava'"),
        (
            dict(language_model=dict(config=tiny_sphinx.language_config() | dict(hidden_size=32))),
            'out_channels=16 must',
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_a_neck_for_maps_is_refused():
    config = tiny_sphinx.sphinx_config()
    config['neck'] = dict(type='EmbeddingMixNeck', in_channels=[8], out_channels=16, output='featmap', grid=2)
    with pytest.raises(ValueError, match="neck.output='featmap'"):
        MODELS.build(config)


def test_tokens_that_are_not_those_of_the_model_name_the_keys():
    vlm = build(grid=2)
    with pytest.raises(ValueError, match=r'hold 1 views.* images of 5.*the grid of the model \(2\)'):
        vlm.hidden(encode([([SQUARE], 'what?', 'a')], grid=1))
    with pytest.raises(ValueError, match='view_tokens and crop_tokens'):
        vlm.hidden(encode([([SQUARE], 'what?', 'a')], grid=2, crop_tokens=3))
    batch = encode([([SQUARE], 'what?', 'a')], grid=2)
    five = batch | dict(pixel_values=batch['pixel_values'][None])
    for read in (vlm.hidden, vlm.canvases, vlm.generate):
        with pytest.raises(ValueError, match=r'pixel_values are of shape \[1, 1, 3, 56, 56\]; SphinxFamily reads'):
            read(five)
    batch.pop('pixel_values')
    with pytest.raises(ValueError, match='hold 1 images for 0 in pixel_values'):
        vlm.hidden(batch)


def test_scoring_takes_an_encoder_that_sees_the_canvas_as_it_is():
    vlm = build(mixed=True)
    assert vlm.vision_encoder is vlm.family.model.vision.backbone.branches[0]
    config = tiny_sphinx.sphinx_config(mixed=True)
    del config['backbone']['encoders'][0]
    config['neck']['in_channels'] = tiny_sphinx.CHANNELS[1:]
    assert isinstance(vlm := MODELS.build(config), SphinxModel) and vlm.vision_encoder is None


def test_aia_records_the_language_model_whichever_part_comes_first():
    vlm = build()
    # Encoders of transformers are models that could be recorded as well.
    parts = vlm.family.model._modules
    parts['language_model'] = parts.pop('language_model')
    recorder = InteractionRecorder(vlm)
    assert recorder.num_layers == 2
    with recorder:
        assert vlm.family.model.language_model.config._attn_implementation == NAME
        assert vlm.family.model.vision.backbone.branches[0].encoder.config._attn_implementation != NAME
