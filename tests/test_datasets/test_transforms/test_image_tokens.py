import numpy as np
import pytest
import tiny_sphinx
import torch
from PIL import Image
from tiny_vlms import ALL_FAMILIES, SMALLEST_SIDE, image_token, tiny_processor

from mergemix_mm.datasets.processors.llava_padding import pad_to_square
from mergemix_mm.datasets.transforms.image_tokens import ImageTokens, with_axes

THIN = [(1, 40), (2, 40), (3, 40), (40, 3), (3, 3), (1, 3), (5, 40)]


def picture(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def processors():
    yield from ((family, tiny_processor(family)) for family in ALL_FAMILIES)
    padding = tiny_processor('llava')
    padding.image_processor = pad_to_square(padding.image_processor)
    yield 'llava', padding


@pytest.mark.parametrize('height, width', THIN)
def test_an_image_of_1_or_3_pixels_height_is_processed_like_its_tensor_of_known_axes(height, width):
    pixels = picture(height, width)
    channels_first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    for family, processor in processors():
        if min(height, width) < SMALLEST_SIDE[family]:
            continue
        tokens, images = ImageTokens(processor), processor.image_processor
        fast = {'BaseImageProcessorFast', 'TorchvisionBackend'} & {cls.__name__ for cls in type(images).__mro__}
        given = torch.from_numpy(channels_first) if fast else channels_first
        given = [[given]] if family == 'smolvlm' else [given]
        expected = images(given, input_data_format='channels_first', return_tensors='pt')['pixel_values']
        _, found = tokens.process(image_token(family), [tokens.token_id], [Image.fromarray(pixels)], False)
        assert torch.equal(found['pixel_values'], expected), (family, type(images).__name__)


@pytest.mark.parametrize('family', ['llava', 'paligemma'])
@pytest.mark.parametrize('height', [1, 3])
def test_the_colours_of_a_thin_image_reach_the_model(family, height):
    processor = tiny_processor(family)
    images = processor.image_processor
    pixels = ImageTokens(processor).tensors([Image.new('RGB', (40, height), (255, 0, 0))])['pixel_values']
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (images.image_mean, images.image_std))
    red = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 28, 28)
    torch.testing.assert_close(pixels[0] * std + mean, red, atol=1e-5, rtol=0)


def test_sphinx_reads_thin_images_as_they_lie():
    processor = tiny_sphinx.processor()
    for height in (1, 3):
        pixels = picture(height, processor.image_size)
        found = processor.pixels_of(Image.fromarray(pixels))
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
        rows = (found * std + mean).permute(1, 2, 0)
        top = (processor.image_size - height) // 2
        torch.testing.assert_close(rows[top : top + height] * 255, torch.from_numpy(pixels).float(), atol=1e-3, rtol=0)
    assert with_axes(processor, ['image']) == (['image'], {})


def test_images_of_usual_sizes_are_processed_as_without_the_option():
    for family, processor in processors():
        image = Image.fromarray(picture(45, 60))
        images, axes = with_axes(processor, [image])
        nested = (lambda each: [each]) if family == 'smolvlm' else (lambda each: each)
        found = processor.image_processor(nested(images), return_tensors='pt', **axes)
        plain = processor.image_processor(nested([image]), return_tensors='pt')
        assert torch.equal(found['pixel_values'], plain['pixel_values']), family
