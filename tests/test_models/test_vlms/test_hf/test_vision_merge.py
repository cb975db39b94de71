import pytest
import tiny_vlms
import torch

from mergemix_mm.functional import TokenGroups
from mergemix_mm.models.vision_encoders import build_vision_encoder, run_layers
from mergemix_mm.models.vlms import IMAGE, HFVisionLanguageModel

PATCHES = 16


def make(num_merge=6, family='llava', config=None, **kwargs):
    torch.manual_seed(0)
    config = config or tiny_vlms.tiny_config(family)
    return HFVisionLanguageModel(config=config, vision_merge=dict(num_merge=num_merge), **kwargs)


def batch_of(texts=('<image>what is it?', 'a<image>b<image>c', 'no image'), padding_side='right'):
    count = sum(text.count('<image>') for text in texts)
    batch = tiny_vlms.tiny_processor('llava')(
        text=list(texts),
        images=[tiny_vlms.random_image(40, 56, seed) for seed in range(count)],
        padding=True,
        padding_side=padding_side,
        return_tensors='pt',
    )
    batch = dict(batch)
    behind = batch['attention_mask'].flip(1).cumsum(dim=1).flip(1)
    answer = (behind <= 2) & (batch['attention_mask'] == 1)
    batch['labels'] = batch['input_ids'].masked_fill(~answer, -100)
    return batch


def real(batch, key):
    return [row[mask.bool()].tolist() for row, mask in zip(batch[key], batch['attention_mask'])]


def without_images(vlm, batch, key='input_ids'):
    text = (batch['attention_mask'] == 1) & (batch['input_ids'] != vlm.family.image_token_id)
    return [row[mask].tolist() for row, mask in zip(batch[key], text)]


def loss_of(vlm, batch):
    logits = vlm.head(vlm.hidden(batch))
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch['labels'][:, 1:].flatten())


@pytest.mark.parametrize('padding_side', ['left', 'right'])
def test_prepare_shrinks_placeholders_masks_and_labels_alike(padding_side):
    vlm, batch = make(), batch_of(padding_side=padding_side)
    prepared = vlm.prepare(batch)
    images = (prepared['input_ids'] == vlm.family.image_token_id).sum(dim=1)
    assert images.tolist() == [10, 20, 0]
    assert without_images(vlm, prepared) == without_images(vlm, batch)
    assert without_images(vlm, prepared, 'labels') == without_images(vlm, batch, 'labels')
    # The second sample is the longest: two images and four more tokens with the first.
    lengths = prepared['attention_mask'].sum(dim=1)
    assert prepared['input_ids'].shape == prepared['labels'].shape == (3, int(lengths.max()))
    padding = prepared['attention_mask'] == 0
    assert (prepared['labels'][padding] == -100).all()
    assert padding[:, -1 if padding_side == 'right' else 0].any()
    assert not padding[:, 0 if padding_side == 'right' else -1].any()
    assert batch['input_ids'].shape == batch_of(padding_side=padding_side)['input_ids'].shape


def test_prepare_shrinks_rejected_answers_and_keeps_the_images():
    vlm, batch = make(), batch_of()
    rejected = {key: batch[key].flip(1) for key in ('input_ids', 'labels', 'attention_mask')}
    prepared = vlm.prepare(dict(batch, rejected=rejected))
    assert (prepared['rejected']['input_ids'] == vlm.family.image_token_id).sum(dim=1).tolist() == [10, 20, 0]
    assert prepared['pixel_values'] is batch['pixel_values']
    assert len(vlm.canvases(prepared)[0]) == 3
    assert vlm.canvases(prepared)[1].tolist() == [0, 1, 1]
    assert (vlm.modality(prepared) == IMAGE).sum() == 30


@pytest.mark.parametrize('layer', [-2, -1, 1])
@pytest.mark.parametrize('strategy', ['default', 'full'])
def test_without_merging_hidden_states_are_the_librarys(layer, strategy):
    config = tiny_vlms.tiny_config('llava')
    config.update(vision_feature_layer=layer, vision_feature_select_strategy=strategy)
    vlm = make(0, config=config).eval()
    batch = batch_of()
    if strategy == 'full':  # The class token takes a place of its own.
        ids = batch['input_ids'].tolist()
        first = [[i for i in row if i == vlm.family.image_token_id][: row.count(4) // 16] + row for row in ids]
        width = max(map(len, first))
        batch = dict(
            input_ids=torch.tensor([row + [0] * (width - len(row)) for row in first]),
            attention_mask=torch.tensor([[int(i != 0) for i in row] + [0] * (width - len(row)) for row in first]),
            pixel_values=batch['pixel_values'],
        )
    batch.pop('labels', None)
    expected = vlm.model.model(**batch).last_hidden_state
    assert torch.allclose(vlm.hidden(vlm.prepare(batch)), expected, atol=1e-5)


def test_the_language_model_reads_the_merged_tokens_in_raster_order():
    vlm, batch = make().eval(), batch_of(['<image>'])
    read = []
    vlm.model.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    vlm.hidden(vlm.prepare(batch))
    encoder = build_vision_encoder(vlm.vision_encoder)
    x, _ = encoder.embed(batch['pixel_values'])
    ((x, groups),) = run_layers(encoder.layers[:1], x, [6], encoder.num_prefix_tokens)
    assert torch.equal(read[0], x[:, 1:])
    assert isinstance(groups, TokenGroups) and groups.size.sum() == PATCHES + 1
    # The last patch of each group comes later the later the group is, but for merged ones: first unmerged, in order.
    single = groups.size[0, groups.index[0]] == 1
    assert (groups.index[0][single].diff() > 0).all()


@pytest.mark.parametrize('trainable', [['vision_tower'], ['projector'], ['language_model']])
def test_gradients_reach_the_part_that_trains(trainable):
    vlm = make(trainable=trainable)
    loss_of(vlm, vlm.prepare(batch_of())).backward()
    found = {name for name, p in vlm.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert found and all(name.startswith(tuple(vlm.family.parts[trainable[0]])) for name in found)
    if trainable == ['vision_tower']:
        assert any('layers.0.mlp' in name for name in found)


def test_padding_side_does_not_change_the_loss():
    vlm = make().eval()
    left, right = (vlm.prepare(batch_of(padding_side=side)) for side in ('left', 'right'))
    assert torch.allclose(loss_of(vlm, left), loss_of(vlm, right), atol=1e-5)


def test_generation_reads_merged_images_and_equals_one_by_one():
    vlm = make().eval()
    texts = ('<image>what is it?', 'a<image>b')
    found = vlm.generate(vlm.prepare(batch_of(texts)), max_new_tokens=5, eos_token_id=None)
    processor = tiny_vlms.tiny_processor('llava')
    for row, text in enumerate(texts):
        alone = dict(processor(text=[text], images=[tiny_vlms.random_image(40, 56, row)], return_tensors='pt'))
        alone = vlm.prepare(alone)
        one = vlm.generate(alone, max_new_tokens=5, eos_token_id=None)
        assert torch.equal(one.sequences[0], found.sequences[row])
        assert torch.allclose(one.logps[0], found.logps[row], atol=1e-4)
        # The log-probabilities are those of a forward over the merged image.
        ids = torch.cat([alone['input_ids'], one.sequences], dim=1)
        logps = vlm.head(vlm.hidden(dict(alone, input_ids=ids, attention_mask=torch.ones_like(ids))))[0, -6:-1]
        expected = logps.log_softmax(dim=-1).gather(1, one.sequences[0][:, None]).sum()
        assert torch.allclose(expected, one.logps[0], atol=1e-4)


def test_a_batch_that_was_not_prepared_is_refused():
    with pytest.raises(ValueError, match=r'48 image tokens in input_ids for 3 images of 10 .* call prepare'):
        make().hidden(batch_of())


def test_text_alone_passes():
    vlm = make()
    batch = dict(input_ids=torch.randint(10, 200, (2, 5)))
    assert vlm.hidden(vlm.prepare(batch)).shape == (2, 5, 16)


def test_too_many_merges_are_refused():
    with pytest.raises(ValueError, match=r'num_merge=9.* 16 patches and 1 layers up to vision_feature_layer=-2'):
        make(9)


@pytest.mark.parametrize('family', ['llava_next', 'paligemma', 'qwen2_5_vl', 'qwen3_vl'])
def test_other_families_are_refused(family):
    with pytest.raises(ValueError, match=rf"model_type='{family}'.*remove vision_merge"):
        make(2, family)


def test_a_tower_with_rotary_positions_is_refused():
    config = tiny_vlms.tiny_config('llava')
    config['vision_config']['model_type'] = 'dinov3_vit'
    message = r'vision_merge: tokens of `DINOv3ViTModel` cannot merge \(rotary positions\): remove vision_merge'
    with pytest.raises(ValueError, match=message):
        make(config=config)


def test_lora_and_merging_work_together():
    vlm = make(lora=dict(r=2), trainable=['language_model', 'projector', 'vision_tower'])
    loss_of(vlm, vlm.prepare(batch_of())).backward()
    found = [name for name, p in vlm.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert any('vision_tower' in name for name in found) and any('lora_B' in name for name in found)
