"""Views tile the image, padding is known exactly, and boxes find their way back."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mergemix_mm.functional import (
    boxes_from_square,
    boxes_from_view,
    boxes_to_square,
    real_views,
    split_views,
    square_padding,
)

ALIGN = st.sampled_from(['center', 'corner'])
SIDE = st.integers(1, 60)
FRACTIONS = st.lists(st.floats(0, 1), min_size=4, max_size=4)


def random_images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tile(crops, grid):
    """Crops [B, grid**2, 3, S, S], row by row, put together again."""
    rows = [torch.cat(list(crops[:, r * grid : (r + 1) * grid].unbind(1)), dim=-1) for r in range(grid)]
    return torch.cat(rows, dim=-2)


@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 3), st.integers(0, 99))
def test_crops_put_together_are_the_image_bit_by_bit(grid, view_size, batch_size, seed):
    images = random_images(batch_size, 3, grid * view_size, grid * view_size, seed=seed)
    views = split_views(images, grid, view_size)
    assert views.shape == (batch_size, 1 + grid**2, 3, view_size, view_size)
    assert torch.equal(tile(views[:, 1:], grid), images)


@given(st.integers(1, 4), st.integers(1, 12), SIDE, SIDE, st.integers(0, 99))
def test_crops_put_together_are_the_resized_image(grid, view_size, height, width, seed):
    images = random_images(1, 3, height, width, seed=seed)
    canvas = F.interpolate(images, size=(grid * view_size,) * 2, mode='bilinear', antialias=True)
    torch.testing.assert_close(tile(split_views(images, grid, view_size)[:, 1:], grid), canvas)


def test_the_first_view_is_the_whole_image_resized():
    images = random_images(2, 3, 24, 24)
    expected = F.interpolate(images, size=(8, 8), mode='bilinear', antialias=True)
    for grid in (0, 1, 2, 3):
        assert torch.equal(split_views(images, grid, 8)[:, 0], expected)


def test_without_crops_an_image_of_the_view_size_is_copied():
    images = random_images(2, 3, 8, 8)
    views = split_views(images, 0, 8)
    assert views.shape == (2, 1, 3, 8, 8) and torch.equal(views[:, 0], images)
    views.zero_()
    assert images.abs().sum() > 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_views_in_half_precision_are_those_in_float32_rounded(dtype):
    images = random_images(1, 3, 30, 30).to(dtype)
    views = split_views(images, 2, 8)
    assert views.dtype == dtype
    assert torch.equal(views, split_views(images.float(), 2, 8).to(dtype))


def seen_in_a_padded_mask(height, width, grid, align):
    """Pads a mask of the image, every pixel of it drawn `grid` x `grid` times, and looks into each crop."""
    side = max(height, width)
    top, left = ((side - height) // 2, (side - width) // 2) if align == 'center' else (0, 0)
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    mask = mask.repeat_interleave(grid, 0).repeat_interleave(grid, 1)
    crops = [mask[r * side : (r + 1) * side, c * side : (c + 1) * side].any() for r in range(grid) for c in range(grid)]
    return [True, *map(bool, crops)]


@given(st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=3), st.integers(0, 4), ALIGN)
def test_real_views_are_those_in_which_a_padded_mask_shows(sizes, grid, align):
    found = real_views(torch.tensor(sizes), grid, align)
    assert found.tolist() == [seen_in_a_padded_mask(h, w, grid, align) for h, w in sizes]


def test_real_views_of_wide_images():
    sizes = torch.tensor([[100, 200], [100, 300]])
    assert real_views(sizes, 2).sum(dim=1).tolist() == [5, 5]
    assert real_views(sizes, 2, 'corner')[0].tolist() == [True, True, True, False, False]
    assert real_views(sizes, 3)[1].tolist() == [True, *[False] * 3, *[True] * 3, *[False] * 3]


def test_the_smaller_half_of_an_odd_padding_is_at_the_top():
    side, offset = square_padding(torch.tensor([[5, 10], [10, 4]]))
    assert side.tolist() == [10, 10] and offset.tolist() == [[0, 2], [3, 0]]


@given(SIDE, SIDE, FRACTIONS, ALIGN)
def test_boxes_return_from_the_square(height, width, fractions, align):
    boxes = torch.tensor(fractions, dtype=torch.float64) * torch.tensor([width, height, width, height])
    square = boxes_to_square(boxes, (height, width), align)
    assert square.min() >= 0 and square.max() <= 1
    torch.testing.assert_close(boxes_from_square(square, (height, width), align), boxes)


def test_boxes_in_the_square_are_where_the_padding_puts_them():
    boxes = torch.tensor([[0, 0, 200, 100], [50, 25, 100, 50]])
    assert boxes_to_square(boxes, (100, 200)).tolist() == [[0, 0.25, 1, 0.75], [0.25, 0.375, 0.5, 0.5]]
    assert boxes_to_square(boxes, (100, 200), 'corner').tolist() == [[0, 0, 1, 0.5], [0.25, 0.125, 0.5, 0.25]]
    assert boxes_to_square(torch.tensor([50.0, 25.0]), (100, 200)).tolist() == [0.25, 0.375]


def test_sizes_broadcast_against_the_boxes_of_each_image():
    boxes = torch.tensor([[[0.0, 0, 10, 5], [5, 0, 10, 5]], [[0, 0, 5, 10], [0, 5, 5, 10]]])
    sizes = torch.tensor([[5, 10], [10, 5]]).unsqueeze(1)
    found = boxes_to_square(boxes, sizes, 'corner')
    for i, size in enumerate([(5, 10), (10, 5)]):
        assert torch.equal(found[i], boxes_to_square(boxes[i], size, 'corner'))
    torch.testing.assert_close(boxes_from_square(found, sizes, 'corner'), boxes)


def test_boxes_from_the_square_are_clipped_to_the_image():
    assert boxes_from_square(torch.tensor([-0.5, 0.0, 1.5, 1.0]), (50, 100)).tolist() == [0, 0, 100, 50]


@given(st.integers(1, 4), st.data())
def test_boxes_of_a_view_lie_in_its_crop(grid, data):
    view = data.draw(st.integers(1, grid**2))
    boxes = torch.tensor(data.draw(FRACTIONS), dtype=torch.float64)
    row, column = divmod(view - 1, grid)
    found = boxes_from_view(boxes, view, grid)
    torch.testing.assert_close(found * grid - torch.tensor([column, row] * 2), boxes)
    assert torch.equal(boxes_from_view(boxes, 0, grid), boxes)


def test_a_pixel_of_a_view_is_that_pixel_of_the_image():
    images = torch.zeros(1, 3, 30, 30)
    images[:, :, 17, 26] = 1
    views = split_views(images, 3, 10)
    (view,) = [v for v in range(1, 10) if views[0, v].any()]
    y, x = views[0, view, 0].nonzero()[0].tolist()
    assert torch.equal(
        (boxes_from_view(torch.tensor([x / 10, y / 10]), view, 3) * 30).round(), torch.tensor([26, 17.0])
    )


@pytest.mark.parametrize('box', [[-1, 0, 5, 5], [0, 0, 21, 5], [0, 0, 5, 11], [20, 11]])
def test_a_box_outside_its_image_is_an_error(box):
    with pytest.raises(ValueError, match=r'box \[.*\] lies outside .*\[\[10, 20\]\]'):
        boxes_to_square(torch.tensor(box), (10, 20))


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: split_views(torch.zeros(1, 3, 8, 8), -1, 8), 'grid=-1'),
        (lambda: split_views(torch.zeros(3, 8, 8), 2, 4), r'images of shape \[3, 8, 8\]'),
        (lambda: split_views(torch.zeros(1, 3, 8, 8), 2, 0), 'view_size=0'),
        (lambda: real_views(torch.tensor([[4, 4]]), -2), 'grid=-2'),
        (lambda: real_views(torch.tensor([4, 4]), 2), r'sizes of shape \[2\]'),
        (lambda: real_views(torch.tensor([[0, 4]]), 2), 'height, width'),
        (lambda: real_views(torch.tensor([[4.0, 4.0]]), 2), 'torch.float32'),
        (lambda: real_views(torch.tensor([[4, 4]]), 2, 'left'), "align='left'"),
        (lambda: boxes_to_square(torch.zeros(3), (4, 4)), r'boxes of shape \[3\]'),
        (lambda: boxes_from_square(torch.zeros(4), (4, 4, 4)), r'sizes of shape \[3\]'),
        (lambda: boxes_from_view(torch.zeros(4), 5, 2), r'view=5 must be in \[0, 4\]'),
        (lambda: boxes_from_view(torch.zeros(4), 0, -1), 'grid=-1'),
    ],
)
def test_arguments_out_of_range_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
