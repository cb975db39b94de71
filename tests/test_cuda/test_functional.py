"""Every function of `mergemix_mm.functional` gives on a device what it gives on the CPU, and stays there."""

import copy
from contextlib import nullcontext

import pytest
import torch
from on_device import assert_close_to_cpu, moved, no_waiting, tensors

from mergemix_mm import functional as fn

B, L, H, D, C, V = 3, 21, 4, 16, 8, 50
PARTNER = torch.tensor([1, 2, 0])
# Text in, text out, or numbers only.
WITHOUT_TENSORS = {
    'CoordinateError',
    'MaskCosts',
    'Matching',
    'as_grid',
    'draw_side',
    'format_boxes',
    'format_phrase',
    'merge_schedule',
    'parse_boxes',
    'parse_family_boxes',
    'parse_phrases',
    'random_blocks',
    'sample_lambda',
}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masks():
    return torch.arange(L).expand(B, L) >= 12, torch.arange(L).expand(B, L) < 9


def attention(backend, **options):
    query, key, value = drawn(B, H, L, D), drawn(B, 2, L, D, seed=1), drawn(B, 2, L, D, seed=2)
    return (query, key, value, *masks()), dict(backend=backend, **options)


def merged():
    """Tokens, groups, and a match, after one round of merging."""
    x = drawn(B, L, C)
    groups = fn.TokenGroups.identity(B, L)
    match = fn.bipartite_soft_matching(x, 6, protected=1)
    x, groups = fn.merge_tokens(x, groups, match)
    return x, groups, fn.bipartite_soft_matching(x, 4, protected=1)


def restored(groups, values):
    return groups.restore(values)


def state(seed):
    return dict(weight=drawn(5, 7, seed=seed).float(), bias=drawn(7, seed=seed).half(), steps=torch.tensor(3))


def saliency():
    found = drawn(B, 16).abs()
    found[0, 3] = torch.nan
    return found


def labels():
    found = torch.arange(B * L).reshape(B, L) % V
    found[:, :5] = -100
    found[1] = -100
    return found


MASK = torch.arange(B * 16).reshape(B, 16) % 3 > 0
PADDED = masks()[0][:, None, None] | torch.ones(L, L, dtype=torch.bool).tril()
BOXES = torch.tensor([[1.0, 2.0, 8.0, 9.0], [0.0, 0.0, 30.0, 20.0]], dtype=torch.float64)
HEAD = torch.nn.Linear(C, V, dtype=torch.float64)
SIZES = torch.tensor([[20, 30], [31, 17], [5, 50]])
CORNERS = torch.tensor([[0, 1], [2, 2], [1, 0]])
SHARES = torch.tensor([0.2, 0.5, 0.9])


def square_loss(images):
    return images.square().sum()


# Name of the function -> one or several lists of (function, arguments, options).
CASES = {
    'TokenGroups': [(restored, (merged()[1], drawn(B, L - 6, C)), {})],
    'aia_loss': [
        (fn.aia_loss, (drawn(4, B).abs(), torch.full((4,), 0.4), torch.full((4,), 0.1)), {}),
        (fn.aia_loss, (drawn(4, B).abs(), torch.full((4,), 0.4), torch.full((4,), 0.1), PARTNER > 0), {}),
    ],
    'answer_logps': [
        (fn.answer_logps, (drawn(B, L, C), drawn(V, C, seed=1), labels()), dict(chunk_size=7)),
        (fn.answer_logps, (drawn(B, L, C), HEAD, labels()), dict(chunk_size=7)),
        (fn.answer_logps, (drawn(B, L, C), drawn(V, C, seed=1), torch.full((B, L), -100)), {}),
    ],
    'area_ratio': [(fn.area_ratio, (MASK,), {})],
    'attention_ratio': [(fn.attention_ratio, (saliency(), PARTNER, MASK), {})],
    'attention_with_intensity': [
        (fn.attention_with_intensity, *attention(backend, **options))
        for backend in ('fused', 'eager')
        for options in (
            dict(is_causal=True),
            dict(scale=0.3),
            dict(attention_mask=PADDED),
            dict(attention_mask=torch.where(PADDED, 0.0, -1e30)),
        )
    ],
    'bipartite_soft_matching': [
        (fn.bipartite_soft_matching, (drawn(B, L, C), r), dict(protected=p)) for r in (0, 9) for p in (0, 1, 2)
    ],
    'block_mask': [(fn.block_mask, (CORNERS, 2, (4, 4)), {})],
    'box_mask': [(fn.box_mask, (SHARES, CORNERS, (32, 24)), {})],
    'boxes_from_square': [(fn.boxes_from_square, (BOXES / 40, (20, 30)), dict(align=a)) for a in ('center', 'corner')],
    'boxes_from_view': [(fn.boxes_from_view, (BOXES / 40, view, 2), {}) for view in (0, 3)],
    'boxes_to_square': [
        (fn.boxes_to_square, (BOXES, (20, 30)), {}),
        (fn.boxes_to_square, (BOXES, torch.tensor([[20, 30], [20, 30]])), {}),
    ],
    'cell_mask': [],
    'cells_to_pixels': [(fn.cells_to_pixels, (drawn(B, 4, 4), (32, 32)), {})],
    'class_attention': [
        (fn.class_attention, (drawn(B, H, D), drawn(B, H, L, D)), dict(size=size))
        for size in (None, drawn(B, L).abs() + 1)
    ],
    'extreme_blocks': [(fn.extreme_blocks, (drawn(B, 16).abs(), (4, 4), 2), {})],
    'fgsm': [(fn.fgsm, (square_loss, drawn(B, 3, 8, 8).sigmoid(), 0.1), {})],
    'fine_grained_saliency': [(fn.fine_grained_saliency, (drawn(B, 3, 32, 32),), {})],
    'fourier_mask': [],
    'gaussian_smooth': [(fn.gaussian_smooth, (drawn(B, 16, 16).abs(), 2.0), {})],
    'greedy_cycle': [(fn.greedy_cycle, (drawn(B, 16).abs(),), {})],
    'grid_mask': [],
    'hide_patches': [(fn.hide_patches, (drawn(B, 3, 32, 32), drawn(B, 16), 5, (4, 4)), {})],
    'hole_mask': [(fn.hole_mask, (SHARES, torch.tensor([2, 3, 4]), CORNERS, CORNERS + 20, (32, 24)), {})],
    'gaussian_ratio': [],
    'derangement': [],
    'interaction_intensity': [
        (fn.interaction_intensity, (*arguments[:2], *arguments[3:]), options)
        for backend in ('fused', 'eager')
        for arguments, options in (attention(backend, is_causal=True),)
    ],
    'mask_costs': [(fn.mask_costs, (drawn(B, 4, 4).abs(), PARTNER, drawn(B, 3, 32, 32), SHARES), {})],
    'merge_tokens': [(fn.merge_tokens, merged(), {})],
    'mix_embeddings': [
        (fn.mix_embeddings, ([drawn(B, 4, 9, 9), drawn(B, 6, 4, 4)], 6), {}),
        (fn.mix_embeddings, ([drawn(B, 4, 9, 9), drawn(B, 6, 4, 4)], 6), dict(cells=[(1.4, 1.4), (0.7, 0.7)])),
    ],
    'mix_images': [(fn.mix_images, (drawn(B, 3, 32, 32), PARTNER, MASK, (4, 4)), {})],
    'mix_labels': [(fn.mix_labels, (torch.eye(B), PARTNER, drawn(B).sigmoid()), {})],
    'mix_tensors': [(fn.mix_tensors, (drawn(300, 300), drawn(300, 300, seed=1), 0.3), {})],
    'mix_weights': [(fn.mix_weights, (state(0), state(1), 0.3), {})],
    'mixed_attention_ratio': [(fn.mixed_attention_ratio, (drawn(B, 16).abs(), MASK), {})],
    'move_cells': [
        (fn.move_cells, (drawn(B, 3, 32, 32), torch.stack([torch.arange(16).roll(i) for i in range(B)]), (4, 4)), {})
    ],
    'nearest_mask': [(fn.nearest_mask, (MASK, (4, 4), (2, 2)), {})],
    'pgd': [(fn.pgd, (square_loss, drawn(B, 3, 8, 8).sigmoid(), 0.1, 0.02, 3), dict(random_start=False))],
    'progressive_ratio': [
        (fn.progressive_ratio, (drawn(B).sigmoid(), drawn(B, seed=1).sigmoid(), torch.eye(B), drawn(B, B)), {})
    ],
    'random_centers': [],
    'real_views': [(fn.real_views, (SIZES, 2), {})],
    'received_attention': [
        (fn.received_attention, (drawn(B, H, L, D), drawn(B, H, L, D, seed=1), drawn(B, L).abs()), dict(chunk_size=8))
    ],
    'region_means': [(fn.region_means, (drawn(B, 16, C), MASK), {})],
    'replace_patches': [(fn.replace_patches, (drawn(B, 3, 32, 32), drawn(B, 3, 32, 32, seed=1), MASK, (4, 4)), {})],
    'resample_grid': [
        (fn.resample_grid, (drawn(B, 4, 9, 9), 6), {}),
        (fn.resample_grid, (drawn(B, 4, 9, 9), (5, 12)), dict(cell=(1.7, 0.8))),
    ],
    'resize': [(fn.resize, (drawn(B, 3, 20, 30), (12, 40)), {})],
    'restore_attention': [
        (fn.restore_attention, (drawn(B, L - 6).abs(), merged()[1]), dict(proportional=p)) for p in (True, False)
    ],
    'saliency_share': [(fn.saliency_share, (drawn(B, 16, 16).abs(), PARTNER), {})],
    'shift_patches': [(fn.shift_patches, (drawn(B, 3, 32, 32), CORNERS - 1, (4, 4)), {})],
    'simpo_loss': [
        (
            fn.simpo_loss,
            (drawn(B), drawn(B, seed=1), 2.0, drawn(B).sigmoid()),
            dict(loss_type=kind, label_smoothing=0.1),
        )
        for kind in ('sigmoid', 'hinge')
    ],
    'spectral_residual': [(fn.spectral_residual, (drawn(B, 3, 32, 32),), {})],
    'spot_mask': [(fn.spot_mask, (CORNERS, SHARES * 8 + 1, (32, 24)), {})],
    'split_views': [(fn.split_views, (drawn(B, 3, 40, 40), grid, 16), {}) for grid in (0, 2)],
    'square_padding': [(fn.square_padding, (SIZES,), dict(align=align)) for align in ('center', 'corner')],
    'top_down_saliency': [(fn.top_down_saliency, (drawn(B, 16).abs(), drawn(B, 16, C), drawn(B, C)), {})],
    'topk_mask': [(fn.topk_mask, (saliency(), ratio), {}) for ratio in (0.4, torch.tensor([0.0, 0.5, 1.0]))],
    'transport_costs': [(fn.transport_costs, (drawn(B, 4, 4).abs(), drawn(B, 4, 4).sigmoid()), {})],
    'visible_scores': [(fn.visible_scores, (drawn(B, 16).abs(), PARTNER, MASK), {})],
}
LISTED = [pytest.param(*case, id=f'{name}-{i}') for name, cases in CASES.items() for i, case in enumerate(cases)]


def wider(dtype):
    return dict(atol=1e-10, rtol=1e-10) if dtype == torch.float64 else dict(atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize(('function', 'arguments', 'options'), LISTED)
def test_the_result_is_that_of_the_cpu(function, arguments, options, dtype, device):
    arguments, options = moved((arguments, options), 'cpu', dtype)
    expected = function(*arguments, **options)
    # What is computed in float32 whatever comes in has float32's rounding.
    narrow = any(value.dtype != torch.float64 for value in _floats(expected)) or function in (fn.resize, fn.split_views)
    narrow = narrow or function in (fn.resample_grid, fn.mix_embeddings, fn.merge_tokens, fn.class_attention)
    arguments, options = moved((arguments, options), device)
    found = function(*arguments, **options)
    assert_close_to_cpu(found, expected, device, **wider(torch.float32 if narrow else dtype))


def _floats(value):
    return [one for _, one in tensors(value) if one.is_floating_point()]


def gradients(function, arguments, options):
    """Of the sum of all results, each weighted by its place; None where the function has no gradient."""
    leaves = [one.requires_grad_() for one in _floats((arguments, options))]
    outputs = [one for one in _floats(function(*arguments, **options)) if one.requires_grad]
    if not outputs:
        return None
    total = sum((one * torch.linspace(0.5, 1.5, one.numel(), device=one.device).view_as(one)).sum() for one in outputs)
    return [torch.zeros(()) if g is None else g for g in torch.autograd.grad(total, leaves, allow_unused=True)]


@pytest.mark.parametrize(('function', 'arguments', 'options'), LISTED)
def test_gradients_are_those_of_the_cpu(function, arguments, options, device):
    arguments, options = copy.deepcopy((arguments, options))
    expected = gradients(function, *moved((arguments, options), 'cpu', torch.float32))
    found = gradients(function, *moved((arguments, options), device, torch.float32))
    assert (found is None) == (expected is None)
    for got, want in zip(found or (), expected or (), strict=True):
        torch.testing.assert_close(got.cpu(), want, atol=5e-5, rtol=5e-5)


def test_every_function_on_tensors_is_tested():
    assert set(CASES) | WITHOUT_TENSORS == set(fn.__all__)


@pytest.mark.parametrize('where', ['none', 'cpu', 'device'])
def test_draws_lie_where_they_are_wanted(where, device):
    def generator():
        return None if where == 'none' else torch.Generator('cpu' if where == 'cpu' else device).manual_seed(3)

    order = fn.derangement(50, generator(), device)
    assert order.device.type == device.type and (order.cpu() != torch.arange(50)).all()
    assert torch.equal(order.sort().values.cpu(), torch.arange(50))
    mask = torch.rand(50, 16, device=device) > 0.5
    ratio = fn.gaussian_ratio(9, mask, generator())
    assert ratio.device.type == device.type and (ratio.min(), ratio.max()) == (0, 1)
    drawn = fn.sample_lambda(1.0, 20, generator())
    assert drawn.device.type == 'cpu' and len(drawn.unique()) == 20
    if where == 'cpu':  # The same on every device.
        assert torch.equal(order.cpu(), fn.derangement(50, generator()))
        torch.testing.assert_close(ratio.cpu(), fn.gaussian_ratio(9, mask.cpu(), generator()))
    if where == 'none':  # One seed for the draws on all devices.
        torch.manual_seed(5)
        first = fn.derangement(50, device=device)
        torch.manual_seed(5)
        assert torch.equal(first, fn.derangement(50, device=device))


def test_merging_and_mixing_do_not_wait_for_the_device(device):
    tokens = torch.randn(2, 65, 16, device=device, requires_grad=True)
    images, partner = torch.randn(2, 3, 32, 32, device=device), torch.tensor([1, 0], device=device)
    target, delta = torch.full((2, 1), 0.4, device=device)
    masks = torch.ones(2, 65, dtype=torch.bool, device=device)
    heads = torch.randn(2, 4, 65, 16, device=device)
    kept = torch.ones(2, 16, dtype=torch.bool, device=device)
    for warm in (True, False):  # The first calls load libraries.
        with nullcontext() if warm else no_waiting(device):
            groups = fn.TokenGroups.identity(2, 65, device)
            x, groups = fn.merge_tokens(tokens, groups, fn.bipartite_soft_matching(tokens, 20, 1))
            fn.restore_attention(fn.class_attention(heads[:, :, 0], heads[:, :, :45], groups.size), groups)
            groups.restore(x).sum().backward()
            fn.mix_labels(torch.ones(2, 5, device=device), partner, fn.area_ratio(kept))
            fn.attention_ratio(torch.ones(2, 16, device=device), partner, kept)
            fn.mix_images(images, partner, kept, (4, 4))
            _, intensity = fn.attention_with_intensity(heads, heads, heads, masks, masks, is_causal=True)
            fn.aia_loss(intensity[None], target, delta)
            fn.simpo_loss(images.mean((1, 2, 3)), intensity, 2.0, 0.5)
            fn.mix_embeddings([images], 8)
            fn.split_views(images, 2, 16)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_what_is_computed_in_float32(dtype, device):
    tokens, heads = torch.randn(2, 65, 16, device=device), torch.randn(2, 4, 65, 16, device=device)
    maps = torch.randn(2, 3, 9, 9, device=device)

    def results():
        match = fn.bipartite_soft_matching(tokens, 20, 1)
        x, groups = fn.merge_tokens(tokens, fn.TokenGroups.identity(2, 65, device), match)
        received = fn.received_attention(heads, heads, torch.ones(2, 65, device=device))
        return x, groups, fn.class_attention(heads[:, :, 0], heads), received, fn.resample_grid(maps, 4, (2.0, 1.5))

    expected = results()
    with torch.autocast(device.type, dtype=dtype):
        found = results()
    for (name, got), (_, want) in zip(tensors(found), tensors(expected), strict=True):
        # Sums of merged tokens come in any order on a GPU; half precision would differ by a thousandth.
        torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-6, msg=lambda text, name=name: f'{name}: {text}')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_goes_through_mixing_and_merging(dtype, device):
    images, partner = torch.randn(3, 3, 32, 32, device=device, dtype=dtype), PARTNER.to(device)
    mixed = fn.mix_images(images, partner, MASK.to(device), (4, 4))
    assert mixed.dtype == dtype and mixed.device == images.device
    saliency = torch.rand(3, 16, device=device, dtype=dtype)
    assert fn.topk_mask(saliency, 0.5).sum(1).tolist() == [8] * 3
    assert fn.mix_labels(saliency, partner, fn.attention_ratio(saliency, partner, MASK.to(device))).isfinite().all()
    tokens = torch.randn(3, 65, 16, device=device, dtype=dtype)
    groups = fn.TokenGroups.identity(3, 65, device)
    x, groups = fn.merge_tokens(tokens, groups, fn.bipartite_soft_matching(tokens, 20, 1))
    assert x.dtype == dtype and groups.size.sum(1).tolist() == [65] * 3
    assert fn.split_views(images, 2, 16).dtype == dtype
    first, second = images.flatten(1).unbind()[:2]
    assert fn.mix_tensors(first, second, 0.3).dtype == dtype


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('kind', ['weight', 'module', 'autocast'])
def test_log_probabilities_of_a_large_vocabulary_and_their_gradients(kind, dtype, device):
    """In chunks, against plain logits in float64; gradients of the hidden states and of the head."""
    hidden, weight = drawn(4, 40, 64) / 8, drawn(3000, 64, seed=1)
    marks = torch.randint(3000, (4, 40), generator=torch.Generator().manual_seed(2))
    marks[:, :7] = -100
    exact = [one.clone().requires_grad_() for one in (hidden, weight)]
    logps = (exact[0] @ exact[1].T)[:, :-1].log_softmax(-1)
    expected = (logps.gather(2, marks[:, 1:].clamp(min=0)[..., None])[..., 0] * (marks[:, 1:] != -100)).sum(1)
    expected.mean().backward()

    held = torch.float32 if kind == 'autocast' else dtype
    found = [one.to(device, held).requires_grad_() for one in (hidden, weight)]
    head = found[1] if kind != 'module' else lambda x: x @ found[1].T
    with torch.autocast(device.type, dtype=dtype, enabled=kind == 'autocast' and dtype != torch.float32):
        sums, lengths = fn.answer_logps(found[0], head, marks.to(device), chunk_size=50)
    sums.mean().backward()
    assert sums.dtype == torch.float32 and lengths.tolist() == [33] * 4
    rough = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(sums.double().cpu(), expected.detach(), rtol=rough, atol=rough)
    for got, want in zip(found, exact, strict=True):
        error = (got.grad.double().cpu() - want.grad).norm() / want.grad.norm()
        assert error < rough, error
