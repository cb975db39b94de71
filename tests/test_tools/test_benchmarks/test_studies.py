"""Programs that train: arms are paired, runs are stored one by one and not repeated, and what is trained is known."""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPVisionModel

CURVES = dict(gen=dict(mean=[0.4, 0.6], std=[0.01, 0.1]), und=dict(mean=[0.1, 0.2], std=[0.2, 0.2]))


def keep_arms(program, monkeypatch, *names):
    """Let a program have only some of its arms; the keys of its runs."""
    monkeypatch.setattr(program, 'ARMS', {name: program.ARMS[name] for name in names})
    return {f'{name}/{seed}' for name in names for seed in (0, 1)}


# Digits.


def test_a_study_is_paired_stored_run_by_run_and_not_repeated(load, tmp_path, monkeypatch, capsys):
    study, output = load('mixing_study'), tmp_path / 'runs.json'
    arms = {name: study.STUDIES['labels'].arms[name] for name in ('box, area', 'MergeMix, shuffled')}
    arms = {name: arm._replace(prob=1.0) for name, arm in arms.items()}
    contrasts = {'both': {'MergeMix, shuffled': 1, 'box, area': -1}}
    monkeypatch.setitem(study.STUDIES, 'labels', study.Study(arms, 'box, area', 5, contrasts))
    monkeypatch.setattr(study, 'ARMS', arms)
    runs = study.main(['labels', '--quick', '--output', str(output)])
    assert set(runs) == {f'{name}/{seed}' for name in arms for seed in (0, 1)}
    printed = capsys.readouterr().out
    assert 'label error %' in printed and '| both ' in printed and '2 seeds' in printed
    tested, correct = (study.unpack_bits(runs['box, area/1'][key], study.NUM_DIGITS) for key in ('tested', 'correct'))
    assert tested.sum() == 32 and not (correct & ~tested).any()
    assert 100 * correct.sum() / 32 == runs['box, area/1']['accuracy']

    stored = json.loads(output.read_text())
    del stored['runs']['box, area/1']
    output.write_text(json.dumps(stored))
    with pytest.raises(SystemExit, match='1 runs are missing'):
        study.main(['labels', '--quick', '--minutes', '0', '--output', str(output)])
    again = study.main(['labels', '--quick', '--output', str(output)])
    assert again['box, area/1'] | dict(seconds=0) == runs['box, area/1'] | dict(seconds=0)
    assert again['box, area/0'] == runs['box, area/0']
    # Another study has one of the arms too, and runs nothing again.
    monkeypatch.setitem(study.STUDIES, 'variants', study.Study({'box, area': arms['box, area']}, 'box, area', 5, {}))
    assert study.main(['variants', '--quick', '--minutes', '0', '--output', str(output)]) == again
    with pytest.raises(SystemExit, match='--output'):
        study.main(['labels', '--steps', '3', '--output', str(output)])


def test_contrasts_name_arms_and_weigh_them_to_zero_and_every_arm_builds(load):
    study = load('mixing_study')
    for name, found in study.STUDIES.items():
        assert found.reference in found.arms
        assert all(study.ARMS[key] == arm for key, arm in found.arms.items()), f'{name}: a name for two recipes'
        for weights in found.contrasts.values():
            assert set(weights) <= set(found.arms) and sum(weights.values()) == 0, name
    for arm in study.ARMS.values():
        load('lib.digits').build_classifier(arm.augment, arm.prob, 0, dict(arm.options))


def test_the_benchmark_trains_the_model_of_the_config(load):
    from mmengine.config import Config

    digits = load('lib.digits')
    found = digits.build_classifier(dict(type='MergeMix'), 0.5, 0).state_dict()
    torch.manual_seed(0)
    expected = digits.MODELS.build(Config.fromfile(digits.config_path(digits.CONFIG)).model)
    expected.init_weights()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())


@pytest.fixture
def labelled(load):
    """A mixer with a label, and 8 images of 32 px with their ink; the model scores 64 patches."""

    def mix(mask, label, seed=0):
        torch.manual_seed(0)
        images, ink = torch.randn(8, 3, 32, 32), torch.rand(8, 32, 32) < 0.1
        backbone = load('lib.digits').build_classifier(None, 0, 0).backbone
        mixer = getattr(load('lib.label_mixers'), mask)(label=label)
        mixer.show_ink(ink)
        load('lib.digits').seed_mixes(seed)
        return mixer.mix(images, backbone), mixer, ink

    return mix


@pytest.mark.parametrize('mask', ['LabelledCutMix', 'LabelledMergeMix'])
def test_labels_differ_on_one_and_the_same_mix(labelled, mask):
    mixes = {label: labelled(mask, label) for label in ('area', 'attention', 'batch mean', 'shuffled', 'visible')}
    results = {label: result for label, (result, _, _) in mixes.items()}
    assert all(torch.equal(result.images, results['area'].images) for result in results.values())
    attention = results['attention'].ratio
    torch.testing.assert_close(results['batch mean'].ratio, attention.mean().expand(8))
    assert attention.std() > 0 and not (results['shuffled'].ratio == attention).any()
    torch.testing.assert_close(results['shuffled'].ratio.sort().values, attention.sort().values)

    result, mixer, ink = mixes['visible']
    side = 32 // result.grid[0]
    own = result.mask.view(8, *result.grid).repeat_interleave(side, 1).repeat_interleave(side, 2)
    torch.testing.assert_close(results['area'].ratio, own.float().mean(dim=(1, 2)))
    shown = (ink & own).sum((1, 2)), (ink[result.partner] & ~own).sum((1, 2))
    torch.testing.assert_close(result.ratio, shown[0] / (shown[0] + shown[1]))
    assert mixer.errors == [0]
    error = (results['area'].ratio - result.ratio).abs().mean()
    assert mixes['area'][1].errors == pytest.approx([float(error)])


def test_a_mix_without_ink_keeps_the_label_of_the_area(load, labelled, monkeypatch):
    labels = load('lib.label_mixers')
    monkeypatch.setattr(labels.LabelledMixer, 'show_ink', lambda self, ink: setattr(self, 'ink', ink & False))
    ratio = labelled('LabelledCutMix', 'visible')[0].ratio
    torch.testing.assert_close(ratio, labelled('LabelledCutMix', 'area')[0].ratio)


def test_occlusion_hides_what_its_shares_say(load):
    study = load('mixing_study')

    class CountsPatches(torch.nn.Module):
        def forward(self, images, mode):  # Right while more than half of the patches can be seen.
            return torch.stack([torch.full((len(images),), 0.5), images.mean(dim=(1, 2, 3))], dim=1)

    area = study.occlusion_area(CountsPatches(), torch.ones(64, 3, 32, 32), torch.ones(64, dtype=torch.int64), (8, 8))
    assert 0.5 < area < 0.75  # 1, 1, about 0.95, about 0.05, 0 at 0 ... 80%.


def test_ratio_fidelity_measures_every_way_and_every_saliency(load, tmp_path, capsys):
    path = tmp_path / 'fidelity.json'
    results = load('ratio_fidelity').main(['--quick', '--threads', '1', '--output', str(path)])
    rows = {row['arm']: row for row in results['fidelity']}
    assert len(rows) == 2 + 4 * 3
    assert {row['mixes'] for row in rows.values()} == {2 * 11 * 32}
    assert all(0 <= row['error'] <= 1 for row in rows.values())
    # Patches drawn at random are unbiased; the published ratio does not look at the mask.
    assert rows['random / area']['error'] < rows['mergemix / gaussian']['error']
    assert len({row['saliency'] for row in results['saliency']}) == 4
    kinds = {(row['layer'], row['saliency']): row for row in results['kinds']}
    assert len(kinds) == 3 * 4 and all(0 <= row['ratio_error'][0] <= 1 for row in kinds.values())
    assert kinds[3, 'attention']['mass_on_digit'] == results['saliency'][5]['mass_on_digit']
    assert len(results['clean_against_mixed']) == 5
    assert json.loads(path.read_text())['accuracy'] == results['accuracy']
    assert 'Ratio fidelity' in capsys.readouterr().out


def test_the_frontier_has_no_pass_that_another_one_beats(load, tmp_path):
    frontier, path = load('scoring_frontier'), tmp_path / 'frontier.json'
    a, b, c, d = (frontier.Pass(3, merged, 1.0) for merged in (0.0, 0.1, 0.2, 0.3))
    errors, times = {a: 0.1, b: 0.2, c: 0.2, d: 0.2}, {a: 1.0, b: 0.5, c: 0.6, d: 0.5}
    assert frontier.frontier(errors, times) == {a, b, d}

    rows = frontier.main(['--quick', '--threads', '1', '--output', str(path)])['passes']
    assert len(rows) == len(frontier.PASSES) == 3 * (1 + 3 + 4 + 4) and any(row['frontier'] for row in rows)
    assert [row['difference'] for row in rows if row['today']] == [0]
    assert json.loads(path.read_text())['passes'] == rows


# AIA.


@pytest.mark.parametrize(
    ('kind', 'gen', 'und'),
    [
        ('teachers', [(0.4, 0.05), (0.6, 0.1)], [(0.1, 0.2), (0.2, 0.2)]),
        ('swapped', [(0.1, 0.2), (0.2, 0.2)], [(0.4, 0.05), (0.6, 0.1)]),
        ('flat', [(0.5, 0.075)] * 2, [(0.15, 0.2)] * 2),
    ],
)
def test_targets_are_the_curves_those_of_the_other_task_or_flat(load, kind, gen, und):
    stages = load('aia_targets').targets(kind, CURVES)
    for task, expected in dict(gen=gen, und=und).items():
        assert [stage['layers'] for stage in stages[task]] == [(0, 1), (1, 2)]
        found = [(stage['target'], stage['delta']) for stage in stages[task]]
        assert [number for pair in found for number in pair] == pytest.approx([x for pair in expected for x in pair])


def test_aia_without_weight_trains_as_no_aia_does_and_is_switched_off_after(load):
    training = load('lib.janus')
    aia, weights = load('aia_targets').AIALoss('janus_pro', weight=0.0), []
    batches = {task: training.encode(task, 16)[0] for task in training.TASKS}
    for criterion in (None, aia):
        tuner = training.build_tuner(0)
        training.train(tuner, batches, 2, seed=0, aia=criterion, batch_size=4)
        assert tuner.alignment is None
        weights.append(torch.cat([parameter.flatten() for parameter in tuner.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-6)


def test_target_runs_are_stored_with_the_teachers_and_not_repeated(load, tmp_path, monkeypatch):
    benchmark, output = load('aia_targets'), tmp_path / 'runs.json'
    keys = keep_arms(benchmark, monkeypatch, 'no AIA', 'swapped, weight x 10')
    runs = benchmark.main(['--quick', '--output', str(output)])
    assert set(runs) == keys
    assert runs['no AIA/0']['ntp_gen'] != runs['swapped, weight x 10/0']['ntp_gen']
    assert runs['no AIA/0']['distance'] == runs['no AIA/0']['teacher_distance'] > 0

    teachers = json.loads((tmp_path / 'runs_teachers_quick.json').read_text())
    assert all(0 < value < 1 for task in ('gen', 'und') for value in teachers[task]['mean'])
    monkeypatch.setattr(benchmark, 'run', None)
    monkeypatch.setattr(benchmark, 'train_teachers', None)
    assert benchmark.main(['--quick', '--output', str(output)]) == json.loads(output.read_text())['runs']


# The tower of the small VLMs, and the preference study that starts from it.


def test_images_are_those_of_the_processor_and_labels_those_of_the_scene(load):
    from mergemix_mm.toy import ShapesConversationDataset, shapes_processor

    tower = load('lib.tower')
    images, colors, shapes, masks = next(tower.batches('val', 1, 4, 48, seed=3))
    dataset = ShapesConversationDataset('val', length=4, seed=3)
    for i, record in enumerate(map(dataset.get_data_info, range(4))):
        expected = shapes_processor().image_processor(record['images'], return_tensors='pt')['pixel_values'][0]
        torch.testing.assert_close(images[i], expected, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(masks[i], record['gt_mask'])
        things = {thing['cell']: (thing['color'], thing['shape']) for thing in record['things']}
        for cell in range(9):
            color, shape = int(colors[i, cell]), int(shapes[i, cell])
            found = (tower.COLORS[color - 1], tower.SHAPES[shape - 1]) if color and shape else None
            assert found == things.get(divmod(cell, 3))


def test_mixed_channels_stay_within_the_range_of_each_pixel(load):
    torch.manual_seed(0)
    images = torch.rand(8, 3, 4, 4)
    mixed = load('lib.tower').mix_channels(images)
    assert (mixed <= images.amax(1, keepdim=True) + 1e-6).all() and (mixed >= images.amin(1, keepdim=True) - 1e-6).all()
    assert (mixed - images).abs().mean() > 0.05


def test_shape_heads_never_see_true_colours(load):
    torch.manual_seed(0)
    training = load('lib.tower')
    tower, heads = CLIPVisionModel(training.tower_config()), training.AttributeHeads(96)
    images, colors, shapes, _ = next(training.batches('train', 1, 6, 48))
    output = tower(images)
    loss = heads.loss(output, colors, shapes, 4)
    other_colors, other_shapes = colors.clone(), shapes.clone()
    other_colors[4:], other_shapes[:4] = 0, 0
    assert heads.loss(output, other_colors, other_shapes, 4) == loss
    other_shapes[4:] = 0
    assert heads.loss(output, colors, other_shapes, 4) != loss


def test_a_short_training_reads_colours(load):
    tower, heads = load('lib.tower').pretrain_tower(40)
    assert load('shapes_tower').measure(tower, heads, 'train', 64)['color'] > 0.5


def test_the_tower_is_saved_for_plain_transformers(load, tmp_path):
    results = load('shapes_tower').main(['--quick', '--threads', '1', '--save', str(tmp_path)])
    assert [row['layer'] for row in results['saliency']] == [2, 3, 4]
    loaded = CLIPVisionModel.from_pretrained(tmp_path)
    tower, _ = load('lib.tower').pretrain_tower(3)
    for (name, one), two in zip(loaded.state_dict().items(), tower.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, msg=name)


def test_preference_arms_start_from_the_frozen_tower(load, tmp_path, monkeypatch, capsys):
    benchmark = load('shapes_preference')
    keys = keep_arms(benchmark, monkeypatch, 'SFT')
    runs = benchmark.main(['--quick', '--output', str(tmp_path / 'runs.json')])
    assert set(runs) == keys and '| SFT ' in capsys.readouterr().out
    tower = CLIPVisionModel.from_pretrained(tmp_path / 'shapes_tower_quick')
    built = load('lib.llava').build_tuner(tmp_path / 'shapes_tower_quick', dict(type='SFTHead'), None, seed=0)
    found = built.vlm.vision_encoder.state_dict()
    assert all(torch.equal(found[name], value) for name, value in tower.state_dict().items())
    assert not any(parameter.requires_grad for parameter in built.vlm.vision_encoder.parameters())
