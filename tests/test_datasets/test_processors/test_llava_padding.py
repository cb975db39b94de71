import numpy as np
import pytest
import tiny_vlms
import torch
from mmengine.registry import TRANSFORMS
from PIL import Image

from mergemix_mm.datasets.processors.llava_padding import pad_to_square


def bright_left_border():
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, :6] = 255
    return Image.fromarray(pixels)


def test_objects_at_the_border_are_seen():
    images = tiny_vlms.tiny_processor('llava').image_processor
    cropped, padded = (
        torch.as_tensor(np.array(one(bright_left_border())['pixel_values'])) for one in (images, pad_to_square(images))
    )
    assert cropped.shape == padded.shape == (1, 3, 28, 28)
    assert cropped.max() < 0 < padded.max()
    assert padded[..., :3, :].abs().max() < 0.05  # The padding is the mean colour, 0 after normalisation.


def test_square_images_come_out_as_before():
    images = tiny_vlms.tiny_processor('llava').image_processor
    square = tiny_vlms.random_image(40, 40, 0)
    plain, padded = (np.array(one(square)['pixel_values']) for one in (images, pad_to_square(images)))
    assert np.allclose(plain, padded, atol=1e-6)


def test_the_processor_of_a_folder_pads_and_saves_that(tmp_path):
    tiny_vlms.tiny_processor('llava').save_pretrained(tmp_path / 'a')
    loaded = TRANSFORMS.build(dict(type='LlavaPaddingProcessor', pretrained_model_name_or_path=str(tmp_path / 'a')))
    loaded.save_pretrained(tmp_path / 'b')
    again = TRANSFORMS.build(
        dict(type='transformers.AutoProcessor.from_pretrained', pretrained_model_name_or_path=str(tmp_path / 'b'))
    )
    pixels = np.array(again.image_processor(bright_left_border())['pixel_values'])
    assert again.image_processor.do_pad and pixels.max() == pytest.approx(
        np.array(loaded.image_processor(bright_left_border())['pixel_values']).max()
    )
