"""InternVL: grids of tiles follow from the number of tiles and the size of the image."""

import pytest
import torch
from tiny_vlms import SIZES, mixed_batch, one_image, random_image, tiny_processor
from tiny_vlms import tiny_family as build

from mergemix_mm.families.internvl import tile_grid


@pytest.mark.parametrize('limits', [(1, 6), (1, 12), (2, 4), (3, 8), (6, 6)])
def test_internvl_finds_the_grid_that_the_processor_used(limits):
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    sizes = [(height, width) for height in range(5, 200, 5) for width in range(5, 200, 5)]
    grids = set()
    for size in sizes:
        columns, rows = get_optimal_tiled_canvas(size, (28, 28), *limits)
        count = rows * columns + (rows * columns > 1)
        assert tile_grid(*size, count, (28, 28)) == (rows, columns), size
        grids.add((rows, columns))
    assert len(grids) > 3


@pytest.mark.parametrize(('height', 'width'), SIZES)
def test_an_internvl_canvas_is_the_whole_image_at_the_size_of_its_grid(height, width):
    canvas = build('internvl').canvases(one_image('internvl', height, width))[0]
    processor = tiny_processor('internvl').image_processor
    size = dict(height=canvas.size(1), width=canvas.size(2))
    whole = processor(random_image(height, width, 0), size=size, crop_to_patches=False, return_tensors='pt')
    assert torch.equal(canvas, whole['pixel_values'][0])


def test_internvl_asks_for_the_sizes_of_tiled_images():
    family, batch = build('internvl'), mixed_batch('internvl')
    del batch['original_sizes']
    with pytest.raises(ValueError, match=r'\[7, 4, 1\] tiles.*add original_sizes'):
        family.canvases(batch)
    single = one_image('internvl', 28, 28)
    del single['original_sizes']
    assert torch.equal(family.canvases(single)[0], single['pixel_values'][0])
