"""Qwen2.5-VL: patches of an image are those of its canvas."""

import numpy as np
import pytest
import torch
from tiny_vlms import one_image, random_image, tiny_processor
from tiny_vlms import tiny_family as build


@pytest.mark.parametrize(('height', 'width'), [(28, 28), (56, 84), (112, 28), (84, 84)])
def test_a_canvas_is_the_normalised_image(height, width):
    canvas = build('qwen2_5_vl').canvases(one_image('qwen2_5_vl', height, width))[0]
    processor = tiny_processor('qwen2_5_vl').image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    pixels = torch.from_numpy(np.array(random_image(height, width, 0))).permute(2, 0, 1) / 255
    torch.testing.assert_close(canvas, (pixels - mean) / std, atol=1e-5, rtol=0)
