"""What the benchmarks share: timing, memory, tables, runs, and ways to mix digits, with known answers."""

import json

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


# The scheme of the release.


def test_merge_matrix_sends_every_token_to_one_place_and_keeps_the_prefix(load):
    metric = torch.randn(17, 8, generator=torch.Generator().manual_seed(0))
    matrix = load('lib.release_scheme')._merge_matrix(metric, 5, protected=1)
    assert matrix.shape == (17, 12)
    assert matrix.sum(dim=1).tolist() == [1] * 17
    assert matrix[0, 0] == 1 and matrix[:, 0].sum() == 1
    assert matrix.sum(dim=0).min() == 1


def test_release_scheme_scores_as_ours_does_where_nothing_merges(load):
    from mergemix_mm.models import MergeMix

    step_cost, scheme = load('step_cost'), load('lib.release_scheme').ReleaseScheme
    backbone = step_cost.build_backbone(step_cost.parse_args(['--quick']), 32)
    backbone.eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = MergeMix(num_merge=0, layer=3).score(images, backbone)
    torch.testing.assert_close(scheme(num_merge=0, layer=3).score(images, backbone).saliency, ours.saliency)
    sizes = scheme(num_merge=32, layer=3).score(images, backbone).groups.size
    assert torch.equal(sizes[0], sizes[1])
    assert sizes.shape == (2, 65 - 32) and sizes.sum(dim=1).tolist() == [65, 65]


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
