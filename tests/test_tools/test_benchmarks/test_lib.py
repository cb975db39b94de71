"""What the benchmarks share: timing, memory, tables, runs, and ways to mix digits, with known answers."""

import json
from unittest import mock

import pytest
import torch


def test_arms_take_turns_in_alternating_order_and_times_are_theirs(load, monkeypatch):
    measure, calls, clock = load('lib.measure'), [], [0.0]
    monkeypatch.setattr(measure.time, 'perf_counter', lambda: clock[0])

    def arm(name):
        calls.append(name)
        clock[0] += ord(name)

    times = measure.interleaved_times({name: lambda name=name: arm(name) for name in 'abc'}, rounds=3, warmup=1)
    assert ''.join(calls) == 'abccbaabccba'
    assert times == {name: [ord(name)] * 3 for name in 'abc'}
    with pytest.raises(ValueError, match='rounds=0'):
        measure.interleaved_times({}, rounds=0)


def test_ratios_are_taken_within_a_round(load):
    measure = load('lib.measure')
    # The machine gets ten times slower; the arm stays twice as expensive as the reference.
    assert measure.ratio_cells([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == ('2.00', '2.00 - 3.00')


def test_peak_memory_counts_what_is_held_together(load):
    megabyte = 2**20 // 4

    def function():
        held = torch.empty(megabyte)
        torch.empty(5 * megabyte)  # Freed at once.
        return held, torch.empty(2 * megabyte)

    before = torch.empty(7 * megabyte)  # Is there already, so it does not count.
    assert load('lib.measure').peak_memory(function) == pytest.approx(6, abs=0.01)
    del before


def test_a_call_that_raises_leaves_no_profiler_on(load):
    with pytest.raises(MemoryError):
        load('lib.measure').peak_memory(mock.Mock(side_effect=MemoryError))
    assert not torch.autograd._profiler_enabled()


def test_json_replaces_the_file_whole_or_not_at_all(load, tmp_path):
    measure, path = load('lib.measure'), tmp_path / 'new' / 'result.json'
    measure.write_json(path, dict(value=1))
    with pytest.raises(ValueError):
        measure.write_json(path, dict(value=float('nan')))
    written = json.loads(path.read_text())
    assert written['value'] == 1 and written['machine']['torch'] == torch.__version__
    assert [file.name for file in path.parent.iterdir()] == ['result.json']


def test_the_table_shows_mean_deviation_and_paired_difference(load, cells):
    numbers = {'CutMix/0': 40.0, 'CutMix/1': 50.0, 'Mixup/0': 43.0, 'Mixup/1': 51.0}
    runs = {key: dict(accuracy=value) for key, value in numbers.items()}
    table = load('lib.runs').paired_table(runs, ['CutMix', 'Mixup'], 2, dict(accuracy='top-1 %'), 'CutMix')
    header, _, *rows = cells(table)
    assert header == ['arm', 'top-1 %', 'to CutMix']
    assert rows == [['CutMix', '45.00 ± 7.07', '-'], ['Mixup', '47.00 ± 5.66', '+2.00 ± 1.41']]


def test_random_rows_come_from_each_batch_in_turn_and_repeat_with_the_seed(load):
    random_rows = load('lib.loops').random_rows
    batches = [dict(input_ids=torch.arange(100 * i, 100 * i + 50), task=name) for i, name in enumerate('ab')]
    first, second = ([next(rows) for _ in range(4)] for rows in (random_rows(batches, 8, seed=3) for _ in '12'))
    assert [batch['task'] for batch in first] == ['a', 'b', 'a', 'b']
    assert [int(batch['input_ids'].min()) // 100 for batch in first] == [0, 1, 0, 1]
    assert all(torch.equal(one['input_ids'], other['input_ids']) for one, other in zip(first, second, strict=True))
    assert not torch.equal(first[0]['input_ids'], first[2]['input_ids'])


# The schemes of the releases.


@pytest.fixture
def scheme(load):
    return load('lib.release_scheme')


@pytest.fixture
def small(load):
    """A tiny classifier in eval mode, and images for it."""
    step_cost = load('step_cost')
    torch.manual_seed(0)
    return step_cost.build_model(step_cost.parse_args(['--quick'])).eval(), torch.randn(4, 3, 32, 32)


def test_merge_matrix_sends_every_token_to_one_place_and_keeps_the_prefix(scheme):
    metric = torch.randn(17, 8, generator=torch.Generator().manual_seed(0))
    matrix = scheme._merge_matrix(metric, 5, protected=1)
    assert matrix.shape == (17, 12)
    assert matrix.sum(dim=1).tolist() == [1] * 17
    assert matrix[0, 0] == 1 and matrix[:, 0].sum() == 1
    assert matrix.sum(dim=0).min() == 1


def test_the_scoring_of_the_fork_is_ours_where_nothing_merges_and_merges_all_images_alike(scheme, small):
    from mergemix_mm.models import MergeMix
    from mergemix_mm.models.vision_encoders import build_vision_encoder, run_layers

    backbone, images = small[0].backbone, small[1]
    ours, theirs = (kind(num_merge=0, layer=3) for kind in (MergeMix, scheme.ForkScoring))
    torch.testing.assert_close(theirs.score(images, backbone).saliency, ours.score(images, backbone).saliency)
    parts = build_vision_encoder(backbone)
    *_, (before_last, _) = run_layers(parts.layers[:-1], parts.embed(images)[0], [0] * 3, 1)
    torch.testing.assert_close(theirs.features, before_last[:, 1:])

    merging = scheme.ForkScoring(num_merge=32, layer=3)
    sizes = merging.score(images, backbone).groups.size
    assert torch.equal(sizes[0], sizes[1]) and sizes.sum(dim=1).tolist() == [65] * 4
    assert merging.features.shape == (4, 64, 32) and not merging.features.requires_grad


def test_the_scoring_of_openmixup_reads_the_attention_to_the_class_token_of_one_layer(scheme, small):
    from mergemix_mm.models.vision_encoders import build_vision_encoder, run_layers

    model, images = small
    parts = build_vision_encoder(model.backbone)
    *_, (x, _) = run_layers(parts.layers[:2], parts.embed(images)[0], [0] * 2, 1)
    query, key, _ = parts.layers[2].query_key_value(x)
    expected = (query @ key.mT / query.size(-1) ** 0.5).softmax(dim=-1).sum(dim=1)[:, 1:, 0]
    saliency, grid, tokens = scheme.OpenMixupStep(model, num_merge=0, layer=3).score(images)
    torch.testing.assert_close(saliency, expected)
    assert grid == (8, 8) and tokens.requires_grad
    # Merged, each patch has the row of its group after the last layer, so that at most 65 - 32 rows are read.
    merged, _, tokens = scheme.OpenMixupStep(model, num_merge=32, layer=3).score(images)
    assert tokens.shape == (4, 33, 32) and max(len(row.unique()) for row in merged) <= 33


def test_the_trained_passes_of_openmixup_have_the_loss_of_the_library_where_nothing_merges(scheme, small):
    from mmpretrain.structures import DataSample

    model, images = small
    labels = torch.rand(4, 100)
    samples = [DataSample().set_gt_score(label) for label in labels]
    expected = model.head.loss(model.extract_feat(images), samples)['loss']
    torch.testing.assert_close(scheme.OpenMixupStep(model, merges=False)._loss(images, labels), expected)
    assert not torch.isclose(scheme.OpenMixupStep(model, merges=True)._loss(images, labels), expected, atol=1e-6)


@pytest.mark.parametrize(('scores', 'expected'), [(True, [False, True, False]), (False, [True, False])])
def test_the_release_runs_the_language_model_with_gradient_only_on_the_clean_images(load, scheme, scores, expected):
    steps = load('lib.steps')
    config = steps.small_llava(**steps.TINY_LLAVA)
    tuner = steps.build_llava(dict(type='HFVisionLanguageModel', config=config), scheme.ForkScoring(num_merge=0))
    batch = steps.random_conversations(config, 2, 4, 4)
    passes, language_model = [], tuner.vlm.family.language_model
    language_model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    loss = steps.release_llava_losses(tuner, batch, language_model_scores=scores)['loss']
    assert passes == expected and bool(loss.isfinite()) and loss.requires_grad


# Mixed digits.


@pytest.fixture
def mixes(load):
    return load('lib.digit_mixes')


def test_visible_ink_counts_either_digit_where_it_is_shown(mixes):
    masks, partner_masks, own = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    masks[0, 0, :3] = True  # Three pixels of the own digit in the top row,
    partner_masks[0, :, 1] = True  # four of the partner's in the second column,
    own[0, :, :2] = True  # and the image keeps its two left columns.
    assert [ink.item() for ink in mixes.visible_ink(masks, partner_masks, own)] == [2, 0]
    assert [ink.item() for ink in mixes.visible_ink(masks, partner_masks, ~own)] == [1, 4]


def test_boxes_leave_the_share_of_pixels_that_the_ratio_says(mixes):
    own, ratio = mixes.cut_boxes(torch.tensor([0.0, 0.3, 0.9, 1.0]), (32, 32))
    torch.testing.assert_close(own.float().mean(dim=(1, 2)), ratio)
    assert ratio[3] == 1 and bool((ratio[:3] < 1).all())


def test_resized_mask_keeps_its_shape_inside_the_box(mixes):
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :, 4:] = True
    own = torch.ones_like(mask)
    own[:, 2:6, 0:4] = False
    expected = torch.zeros_like(mask)
    expected[:, 2:6, 2:4] = True
    assert torch.equal(mixes.resize_into(mask, own), expected)


def test_patches_spread_over_their_pixels(mixes):
    mask = torch.tensor([[True, False, False, True]])
    expected = mask.view(1, 2, 2).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert torch.equal(mixes.to_pixels(mask, (2, 2), (4, 4)), expected)


def test_all_ways_mix_with_the_same_lambdas_and_partners(mixes):
    from mergemix_mm.functional import TokenGroups
    from mergemix_mm.models.vision_encoders import PatchScores

    generator = torch.Generator().manual_seed(0)
    saliency = torch.rand(6, 64, generator=generator)
    scores = PatchScores(saliency, TokenGroups.identity(6, 65), (8, 8), 1)
    masks = torch.ones(6, 32, 32, dtype=torch.bool)  # Ink everywhere: the visible share is the share of pixels.
    arms = mixes.mix_all_ways(dict(merged=scores, unmerged=scores), masks, 1.0, generator)
    area = arms['mergemix / area'][0]
    assert len(set(area.tolist())) > 1
    for name in ('topk / area', 'random / area', 'mergemix, attention copied / area'):
        assert torch.equal(arms[name][0], area)
    for name in ('CutMix', 'ResizeMix', 'mergemix / area', 'random / area'):
        ratio, own, other = arms[name]
        torch.testing.assert_close(ratio, own / (own + other))
        assert torch.equal(own + other, torch.full((6,), 1024.0))
    # The border may cut off a box of CutMix, which then leaves the image more than lambda.
    assert bool((arms['CutMix'][0] >= area - 1e-6).all())


def test_correlations_equal_those_of_scipy(mixes):
    stats, generator = pytest.importorskip('scipy.stats'), torch.Generator().manual_seed(0)
    a, b = torch.randint(8, (2, 3, 20), generator=generator).float()  # Few values: many ties.
    for ours, theirs in ((mixes.pearson, stats.pearsonr), (mixes.spearman, stats.spearmanr)):
        expected = [theirs(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
        assert ours(a, b).tolist() == pytest.approx(expected)


def test_overlap_of_the_top_fifth(mixes):
    rising = torch.arange(20.0)[None]
    found = [mixes.top_overlap(rising, other).item() for other in (rising.exp(), -rising, rising.roll(2))]
    assert found == [1, 0, 0.5]


def test_mixes_that_show_no_ink_are_counted_and_left_out(load):
    fidelity = load('ratio_fidelity')
    # Two repeats of two images: ratio, own ink, partner's ink.
    table = torch.tensor([[[0.5, 3.0, 1.0], [0.5, 0.0, 0.0]], [[1.0, 3.0, 1.0], [0.25, 0.0, 4.0]]]).double()
    errors = fidelity._errors(table)
    row = fidelity._fidelity_row('arm', table, errors, errors)
    assert row['nothing_visible'] == 1 and row['mixes'] == 4
    # Both images weigh the same: (0.25 + 0.25) / 2 and 0.25.
    assert row['error'] == pytest.approx(0.25)
    assert row['bias'] == pytest.approx((-0.25 + 0.25 + 0.25) / 3)
    assert row['against_cutmix'] == 0
