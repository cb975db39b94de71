"""Tests of tools/benchmarks: what they measure with gives known answers, and each script runs with --quick."""

import importlib
import json
import time
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[3] / 'tools' / 'benchmarks'


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


# --- _measure ---------------------------------------------------------------------------------------------------------


def test_arms_take_turns_and_the_order_turns_round_every_round(load):
    measure, calls = load('lib.measure'), []
    times = measure.interleaved_times(
        {name: lambda name=name: calls.append(name) for name in 'abc'}, rounds=3, warmup=1
    )
    assert ''.join(calls) == 'abccbaabccba'
    assert {name: len(seconds) for name, seconds in times.items()} == {'a': 3, 'b': 3, 'c': 3}


def test_times_are_seconds_of_each_arm(load):
    times = load('lib.measure').interleaved_times(
        {'sleep': lambda: time.sleep(0.05), 'nothing': lambda: None}, 1, warmup=0
    )
    assert times['sleep'][0] >= 0.05 > times['nothing'][0]


def test_zero_rounds_are_refused(load):
    with pytest.raises(ValueError, match='rounds=0'):
        load('lib.measure').interleaved_times({'a': lambda: None}, rounds=0)


def test_ratios_are_taken_within_a_round(load):
    measure = load('lib.measure')
    # The machine gets ten times slower; the arm stays twice as expensive as the reference.
    assert measure.median_ratio([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0
    assert measure.ratio_range([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == (2.0, 3.0)


def test_peak_memory_counts_what_is_held_together(load):
    megabyte = 2**20 // 4

    def function():
        held = torch.empty(megabyte)
        torch.empty(5 * megabyte)  # Freed at once.
        return held, torch.empty(2 * megabyte)

    before = torch.empty(7 * megabyte)  # Is there already, so it does not count.
    assert load('lib.measure').peak_memory(function) == pytest.approx(6, abs=0.01)
    del before


def test_table_aligns_numbers_to_the_right_and_shows_a_dash_for_nothing(load):
    table = load('lib.measure').markdown_table(['arm', 'time (s)'], [['CutMix', '1.25'], ['none', None]])
    assert table.splitlines() == [
        '| arm    | time (s) |',
        '| ------ | -------: |',
        '| CutMix |     1.25 |',
        '| none   |        - |',
    ]


def test_json_replaces_the_file_whole_or_not_at_all(load, tmp_path):
    measure, path = load('lib.measure'), tmp_path / 'new' / 'result.json'
    measure.write_json(path, dict(value=1))
    with pytest.raises(ValueError):
        measure.write_json(path, dict(value=float('nan')))
    written = json.loads(path.read_text())
    assert written['value'] == 1
    assert written['machine']['torch'] == torch.__version__
    assert [file.name for file in path.parent.iterdir()] == ['result.json']


# --- ratio_fidelity ---------------------------------------------------------------------------------------------------


def test_visible_ink_counts_either_digit_where_it_is_shown(load):
    masks, partner_masks, own = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    masks[0, 0, :3] = True  # Three pixels of the own digit in the top row,
    partner_masks[0, :, 1] = True  # four of the partner's in the second column,
    own[0, :, :2] = True  # and the image keeps its two left columns.
    mine, other = load('lib.digit_mixes').visible_ink(masks, partner_masks, own)
    assert (mine.item(), other.item()) == (2, 0)
    mine, other = load('lib.digit_mixes').visible_ink(masks, partner_masks, ~own)
    assert (mine.item(), other.item()) == (1, 4)


def test_boxes_leave_the_share_of_pixels_that_the_ratio_says(load):
    own, ratio = load('lib.digit_mixes').cut_boxes(torch.tensor([0.0, 0.3, 0.9, 1.0]), (32, 32))
    torch.testing.assert_close(own.float().mean(dim=(1, 2)), ratio)
    assert ratio[3] == 1 and bool((ratio[:3] < 1).all())


def test_resized_mask_keeps_its_shape_inside_the_box(load):
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :, 4:] = True
    own = torch.ones_like(mask)
    own[:, 2:6, 0:4] = False
    expected = torch.zeros_like(mask)
    expected[:, 2:6, 2:4] = True
    assert torch.equal(load('lib.digit_mixes').resize_into(mask, own), expected)


def test_patches_spread_over_their_pixels(load):
    mask = torch.tensor([[True, False, False, True]])
    pixels = load('lib.digit_mixes').to_pixels(mask, (2, 2), (4, 4))
    assert torch.equal(pixels, mask.view(1, 2, 2).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2))


def test_all_ways_mix_with_the_same_lambdas_and_partners(load):
    from mergemix_mm.functional import TokenGroups
    from mergemix_mm.models.vision_encoders import PatchScores

    mixes, generator = load('lib.digit_mixes'), torch.Generator().manual_seed(0)
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
    # A box of CutMix may be cut off by the border, which leaves the image more than lambda.
    assert bool((arms['CutMix'][0] >= area - 1e-6).all())


def test_correlations_equal_those_of_scipy(load):
    consistency, stats = load('lib.attention_consistency'), pytest.importorskip('scipy.stats')
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(8, (2, 3, 20), generator=generator).float()  # Few values: many ties.
    for name, function in (('pearson', stats.pearsonr), ('spearman', stats.spearmanr)):
        expected = [function(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
        assert getattr(consistency, name)(a, b).tolist() == pytest.approx(expected)


def test_overlap_of_the_top_fifth(load):
    rising = torch.arange(20.0)[None]
    consistency = load('lib.attention_consistency')
    assert consistency.top_overlap(rising, rising.exp()).item() == 1
    assert consistency.top_overlap(rising, -rising).item() == 0
    assert consistency.top_overlap(rising, rising.roll(2)).item() == 0.5


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


# --- release_scheme ---------------------------------------------------------------------------------------------------


def test_merge_matrix_sends_every_token_to_one_place_and_keeps_the_prefix(load):
    metric = torch.randn(17, 8, generator=torch.Generator().manual_seed(0))
    matrix = load('lib.release_scheme')._merge_matrix(metric, 5, protected=1)
    assert matrix.shape == (17, 12)
    assert matrix.sum(dim=1).tolist() == [1] * 17
    assert matrix[0, 0] == 1 and matrix[:, 0].sum() == 1
    assert matrix.sum(dim=0).min() == 1


def test_release_scheme_scores_as_ours_does_where_nothing_merges(load):
    from mergemix_mm.models import MergeMix

    step_cost, release_scheme = load('step_cost'), load('lib.release_scheme')
    backbone = step_cost.build_backbone(step_cost.parse_args(['--quick']), 32)
    backbone.eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = MergeMix(num_merge=0, layer=3).score(images, backbone)
    theirs = release_scheme.ReleaseScheme(num_merge=0, layer=3).score(images, backbone)
    torch.testing.assert_close(theirs.saliency, ours.saliency)
    merged = release_scheme.ReleaseScheme(num_merge=32, layer=3).score(images, backbone)
    assert merged.groups.size.tolist()[0] == merged.groups.size.tolist()[1]
    assert merged.groups.size.shape == (2, 65 - 32) and merged.groups.size.sum(dim=1).tolist() == [65, 65]


# --- the scripts ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_step_cost_runs_quickly_and_writes_its_numbers(load, tmp_path, capsys):
    path = tmp_path / 'steps.json'
    results = load('step_cost').main(['--quick', '--output', str(path)])
    rows = {row['arm']: row for row in results['steps']}
    assert set(rows) == {
        'no mixing',
        'Mixup',
        'CutMix',
        'ResizeMix',
        'MergeMix, layer 2',
        'MergeMix, layer 3',
        "release's scheme, layer 3",
    }
    assert rows['CutMix']['ratio'] == 1
    assert rows['CutMix']['scoring_seconds'] is None and rows['MergeMix, layer 3']['scoring_seconds'] > 0
    assert [row['patches'] for row in results['scoring_memory']] == [64, 256, 1024]
    assert all(row['mergemix_mb'] < row['release_mb'] for row in results['scoring_memory'])
    assert json.loads(path.read_text())['steps'] == results['steps']
    assert '| CutMix ' in capsys.readouterr().out


@pytest.mark.slow
def test_tome_throughput_runs_quickly(load, capsys):
    rows = load('tome_throughput').main(['--quick'])['models']
    assert [row['merged'] for row in rows] == [0, 0, 19, 32]
    assert rows[0]['speed_up'] == 1
    assert '| 19 of 64 ' in capsys.readouterr().out.replace('|       ', '| ')


@pytest.mark.slow
def test_ratio_fidelity_runs_quickly(load, tmp_path, capsys):
    path = tmp_path / 'fidelity.json'
    results = load('ratio_fidelity').main(['--quick', '--threads', '1', '--output', str(path)])
    rows = {row['arm']: row for row in results['fidelity']}
    assert len(rows) == 2 + 4 * 3
    assert {row['mixes'] for row in rows.values()} == {2 * 11 * 32}
    assert all(0 <= row['error'] <= 1 for row in rows.values())
    # Patches drawn at random are unbiased; the published ratio does not look at the mask.
    assert rows['random / area']['error'] < rows['mergemix / gaussian']['error']
    assert {row['saliency'] for row in results['saliency']} == {
        'no merging',
        'merged, restored per token',
        'merged, attention copied',
        'merged, no proportional attention',
    }
    assert len(results['clean_against_mixed']) == 5
    assert json.loads(path.read_text())['accuracy'] == results['accuracy']
    assert 'Ratio fidelity' in capsys.readouterr().out


# --- digits_accuracy --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_accuracy_runs_are_paired_stored_one_by_one_and_not_repeated(load, tmp_path, monkeypatch, capsys):
    accuracy, output = load('digits_accuracy'), tmp_path / 'runs.json'
    monkeypatch.setattr(accuracy, 'ARMS', {name: accuracy.ARMS[name] for name in ('CutMix', 'MergeMix, area')})
    runs = accuracy.main(['--quick', '--output', str(output)])
    assert set(runs) == {f'{arm}/{seed}' for arm in ('CutMix', 'MergeMix, area') for seed in (0, 1)}
    assert '| CutMix ' in capsys.readouterr().out

    stored = json.loads(output.read_text())
    del stored['runs']['MergeMix, area/1']
    output.write_text(json.dumps(stored))
    monkeypatch.setattr(accuracy, 'run', lambda arm, seed, **_: dict(accuracy=float(seed), calibration_error=0.0))
    again = accuracy.main(['--quick', '--output', str(output)])
    assert again['MergeMix, area/1'] == dict(accuracy=1.0, calibration_error=0.0)
    assert again['CutMix/0'] == runs['CutMix/0']
    with pytest.raises(SystemExit, match='name another'):
        accuracy.main(['--quick', '--prob', '0.9', '--output', str(output)])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(load):
    accuracy = load('digits_accuracy')
    first, second = (accuracy.run('MergeMix, area', 3, steps=3, prob=1.0, num_test=64) for _ in range(2))
    assert (first['accuracy'], first['calibration_error']) == (second['accuracy'], second['calibration_error'])


def test_the_table_shows_mean_deviation_and_paired_difference(load):
    numbers = {'CutMix/0': 40.0, 'CutMix/1': 50.0, 'Mixup/0': 43.0, 'Mixup/1': 51.0}
    runs = {key: dict(accuracy=value) for key, value in numbers.items()}
    rows = load('lib.runs').paired_table(runs, ['CutMix', 'Mixup'], 2, dict(accuracy='top-1 %'), 'CutMix').splitlines()
    assert [cell.strip() for cell in rows[0].split('|')[1:4]] == ['arm', 'top-1 %', 'to CutMix']
    assert [cell.strip() for cell in rows[2].split('|')[1:4]] == ['CutMix', '45.00 ± 7.07', '-']
    assert [cell.strip() for cell in rows[3].split('|')[1:4]] == ['Mixup', '47.00 ± 5.66', '+2.00 ± 1.41']
