import pytest
import tiny_vlms
import torch

from mergemix_mm.models.vlms import IMAGE, MARKER, HFVisionLanguageModel

SIZES = [(40, 60), (90, 30), (28, 56), (57, 56), (100, 33), (31, 97), (10, 10), (201, 77)]


@pytest.fixture(scope='module')
def vlm():
    torch.manual_seed(0)
    return HFVisionLanguageModel(config=tiny_vlms.tiny_config('llava_next')).eval()


def batch_of(sizes, texts=None, **kwargs):
    images = [tiny_vlms.random_image(*size, seed=i) for i, size in enumerate(sizes)]
    texts = texts or ['<image>What is it?'] * len(sizes)
    processor = tiny_vlms.tiny_processor('llava_next')
    return dict(processor(text=texts, images=images, padding=True, return_tensors='pt', **kwargs))


def test_token_counts_are_those_of_the_processor_for_every_shape(vlm):
    batch = batch_of(SIZES)
    counts = (batch['input_ids'] == vlm.model.config.image_token_id).sum(dim=1)
    assert torch.equal(vlm.family.image_lengths(batch), counts)
    assert len(set(counts.tolist())) > 3
    assert vlm.hidden(batch).isfinite().all()


def test_owners_follow_from_token_counts(vlm):
    batch = batch_of(SIZES[:3], ['no image', '<image>a<image>b', 'c<image>'][1:], padding_side='left')
    canvases, owners = vlm.canvases(batch)
    assert owners.tolist() == [0, 0, 1]
    assert [tuple(canvas.shape) for canvas in canvases] == [(3, 56, 56), (3, 56, 28), (3, 28, 56)]


def test_the_last_token_of_each_row_is_a_marker(vlm):
    batch = batch_of([(28, 56)])  # A thumbnail of 2 x 2 patches, and 2 x 4 patches without padding.
    modality = vlm.modality(batch)[batch['input_ids'] == vlm.model.config.image_token_id]
    row = [IMAGE] * 4 + [MARKER]
    assert modality.tolist() == [IMAGE] * 4 + row + row


def test_markers_are_where_the_library_puts_its_newline(vlm):
    batch = batch_of(SIZES)
    features = vlm.model.get_image_features(batch['pixel_values'], batch['image_sizes'])
    features = getattr(features, 'pooler_output', features)  # Of transformers 5.
    newline = (torch.cat(features) == vlm.model.model.image_newline).all(dim=-1)
    modality = vlm.modality(batch)[batch['input_ids'] == vlm.model.config.image_token_id]
    assert torch.equal(modality == MARKER, newline)


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_tiles_are_exact_and_the_thumbnail_is_that_of_the_new_image(vlm, size):
    """Another image of the same size in place of this one: what the processor would have made of it."""
    batch, other = batch_of([size]), batch_of([(9, 9), size])
    other = {'pixel_values': other['pixel_values'][1:], 'image_sizes': other['image_sizes'][1:]}
    (canvas,) = vlm.family.canvases({**batch, **other})
    rebuilt = vlm.with_canvases(batch, [canvas])['pixel_values'][0]
    expected = other['pixel_values'][0, : len(rebuilt)]
    assert torch.equal(rebuilt[1:], expected[1:])
    # The thumbnail comes from the resized canvas instead of the file: resampling twice, of values in [-1.8, 2.2].
    error = (rebuilt[0] - expected[0]).abs()
    assert error.mean() < 0.06 and error.max() < 0.6
    assert (batch['pixel_values'][0, 0] - expected[0]).abs().mean() > 0.3


def test_the_thumbnail_leaves_out_the_padding(vlm):
    batch = batch_of([(14, 56)])  # On a canvas of 28 x 56: a quarter of padding above and below.
    (canvas,) = vlm.canvases(batch)[0]
    canvas = torch.full_like(canvas, -9.0)
    canvas[:, 7:21] = 1.0
    thumbnail = vlm.with_canvases(batch, [canvas])['pixel_values'][0, 0]
    assert torch.allclose(thumbnail, torch.ones_like(thumbnail), atol=1e-5)
