"""Tests of ReferringBoxMetric, and of reading boxes from answers."""

import pytest
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, METRICS
from mmpretrain.structures import DataSample

from mergemix_mm.evaluation import ReferringBoxMetric
from mergemix_mm.evaluation.metrics.answer_boxes import read_boxes

# 100 x 100 pixels: pixels are hundredths, and the box is 40 x 40.
TRUTH = [[20, 20, 60, 60]]
MALFORMED = {
    'no box': 'on the left',
    'nothing': '',
    'several boxes': '[0.200,0.200,0.600,0.600;0.100,0.100,0.200,0.200]',
    'several brackets': '[0.200,0.200,0.600,0.600][0.200,0.200,0.600,0.600]',
    'a key point': '[0.200,0.200]',
    'a box and a key point': '[0.200,0.200,0.600,0.600;0.300,0.300]',
    'three numbers': '[0.200,0.200,0.600]',
    'an open bracket': '[0.200,0.200,0.600,0.600',
    'corners in the wrong order': '[0.600,0.600,0.200,0.200]',
    'pixels': '[20,20,60,60]',
}


def sample(answer, truth=TRUTH, size=(100, 100), **fields):
    return dict(pred_answer=answer, gt_boxes=truth, image_size=size, align='center', **fields)


def evaluate(samples, **kwargs):
    evaluator = Evaluator(METRICS.build(dict(type='ReferringBoxMetric', **kwargs)))
    for start in range(0, len(samples), 2):
        evaluator.process([DataSample(metainfo=one) for one in samples[start : start + 2]])
    return evaluator.evaluate(len(samples))


def test_equals_the_numbers_worked_out_by_hand():
    samples = [
        sample('[0.200,0.200,0.600,0.600]'),  # The same.
        sample('It is at [0.2,0.2,0.6,0.4].'),  # The upper half: IoU 0.5 exactly, and right.
        sample('[0.400,0.200,0.800,0.600]'),  # Half of it beside: 800 of 2400.
        sample('[0.700,0.700,0.900,0.900]'),  # Elsewhere.
        sample('there'),
    ]
    assert evaluate(samples) == {
        'box/accuracy': pytest.approx(100 * 2 / 5),
        'box/mean_iou': pytest.approx(100 * (1 + 1 / 2 + 1 / 3) / 5),
        'box/malformed': pytest.approx(100 / 5),
    }
    assert evaluate(samples, iou_threshold=0.51)['box/accuracy'] == pytest.approx(20)
    assert evaluate(samples, iou_threshold=0.33)['box/accuracy'] == pytest.approx(60)


@pytest.mark.parametrize('answer', MALFORMED.values(), ids=MALFORMED)
def test_what_is_not_exactly_one_box_is_malformed_and_wrong(answer):
    assert evaluate([sample(answer)]) == {'box/accuracy': 0, 'box/mean_iou': 0, 'box/malformed': 100}


@pytest.mark.parametrize(
    ('align', 'answer'), [('center', '[0.250,0.500,0.750,0.750]'), ('corner', '[0.250,0.250,0.750,0.500]')]
)
def test_boxes_of_a_padded_image_are_brought_back_to_its_pixels(align, answer):
    # 200 wide and 100 high: padded by 50 rows above and below, or by 100 below.
    fields = dict(sample(answer, [[50, 50, 150, 100]], (100, 200)), align=align)
    assert read_boxes(fields, 'test').tolist() == [[50, 50, 150, 100]]
    assert evaluate([fields])['box/mean_iou'] == pytest.approx(100)
    other = dict(fields, align='corner' if align == 'center' else 'center')
    assert evaluate([other])['box/mean_iou'] < 1


def test_a_box_is_clipped_to_the_image_and_alignment_is_central_unless_given():
    fields = sample('[0.000,0.000,1.000,1.000]', size=(100, 200))
    del fields['align']
    assert read_boxes(fields, 'test').tolist() == [[0, 0, 200, 100]]


def test_the_answers_that_the_task_writes_are_right_up_to_the_printed_digits():
    pipeline = [dict(type='GroundingTask', align='corner')]
    dataset = DATASETS.build(dict(type='ShapesTaskDataset', task='grounding', length=20, pipeline=pipeline))
    records = [dataset[i] for i in range(20)]
    values = evaluate(
        [dict(sample(one['gt_answer'], one['gt_boxes'], one['image_size']), align=one['align']) for one in records]
    )
    # Boxes of some 11 pixels, rounded to 48 / 2000 of one.
    assert values['box/accuracy'] == 100 and 98 < values['box/mean_iou'] < 100


def test_groups_are_scored_apart():
    right, wrong = '[0.200,0.200,0.600,0.600]', '[0.200,0.200]'
    values = evaluate(
        [sample(right, split='testA'), sample(wrong, split='testA'), sample(wrong, split='testB'), sample(right)]
    )
    assert values['box/accuracy'] == 50 and values['box/malformed'] == 50
    assert values['box/testA/accuracy'] == values['box/testA/mean_iou'] == values['box/testA/malformed'] == 50
    assert values['box/testB/accuracy'] == 0 and values['box/testB/malformed'] == 100


def test_a_bad_threshold_several_true_boxes_and_unknown_coordinates_are_refused():
    with pytest.raises(ValueError, match=r'iou_threshold=50'):
        ReferringBoxMetric(iou_threshold=50)
    with pytest.raises(ValueError, match=r'gt_boxes=.*TextDetectionMetric'):
        evaluate([sample('', TRUTH * 2)])
    with pytest.raises(ValueError, match="coordinates='qwen'"):
        ReferringBoxMetric(coordinates='qwen')


@pytest.mark.parametrize(
    'box', [[5, 0, 5, 5], [5, 5, 9, 5], [9, 0, 5, 5], [0, 0, float('nan'), 5], ['0', '0', '5', '5']]
)
def test_a_true_box_that_has_no_width_names_its_sample(box):
    with pytest.raises(ValueError, match=r'ReferringBoxMetric: refs\.p: ref 3: gt_boxes='):
        evaluate([sample('[0,0,1,1]', [box], source='refs.p: ref 3')])


@pytest.mark.parametrize(
    ('coordinates', 'answer'),
    [
        ('permille', '<box>(100,200),(300,800)</box>'),
        ('permille', '<|object_ref_start|>it<|object_ref_end|><|box_start|>(100,200),(300,800)<|box_end|>'),
        ('permille', '<ref>the dog</ref><box>[[100, 200, 300, 800]]</box>'),
        ('permille', '[[100,200,300,800]]'),
        ('permille', '[100, 200, 300, 800]'),
        ('permille', '(100, 200, 300, 800)'),
        ('permille', '[[100, 200], [300, 800]]'),
        ('permille', '<box>100 200 300 800</box>'),
        ('permille', '<bbox>100, 200, 300, 800</bbox>'),
        ('permille', '[100\uff0c200\uff0c300\uff0c800]'),
        ('permille', '<think>[1, 2, 3, 4]?</think><answer>[100, 200, 300, 800]</answer>'),
        ('permille', '```json\n[{"bbox_2d": [100, 200, 300, 800], "label": "dog (2 years)"}]\n```'),
        ('percent', '[10, 20, 30, 80]'),
        ('percent', '[10%, 20%, 30.0%, 80%]'),
        ('percent', '{<10><20><30><80>}'),
        ('unit', 'It is at [0.1,0.2,0.3,0.8].'),
        ('unit', '[[.1, .2, .3, .8]]'),
        ('pixels', '{"bbox_2d": [40, 40, 120, 160]}'),
        ('pixels', '(40.0,40.0),(120.0,160.0)'),
        ('loc', '<loc0205><loc0102><loc0819><loc0307> dog'),
    ],
)
def test_answers_of_other_families_are_read_in_the_unit_that_is_said(coordinates, answer):
    one = sample(answer, truth=[[40, 40, 120, 160]], size=(200, 400))
    found = evaluate([one], coordinates=coordinates)
    assert found['box/malformed'] == 0 and found['box/mean_iou'] == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize(
    ('coordinates', 'answer'),
    [
        ('unit', '[100,200,300,800]'),
        ('percent', '[100,200,300,800]'),
        ('permille', '[100,200,300,1200]'),
        ('permille', '(100,200)'),
        ('permille', '<think>[100,200,300,800]'),
        ('permille', '<box>100 200 300</box> [1]'),
        ('permille', '(100,200,300,800,900)'),
        ('permille', '[[100,200,300,800]'),
        ('permille', '[100,200,300]'),
        ('permille', '[300,200,100,800]'),
        ('permille', '[[100,200,300,800],[100,200,300,900]]'),
        ('permille', '[10%,20%,30%,80%]'),
        ('permille', '<loc0205><loc0102><loc0819><loc0307>'),
        ('permille', '100 200 300 800'),
        ('permille', ''),
        ('permille', '[nan,200,300,800]'),
        ('pixels', '[40,40,500,160]'),
        ('loc', '[100,200,300,800]'),
        ('loc', '<loc0205><loc0102><loc0819>'),
        ('square', '<box>(100,200),(300,800)</box>'),
        ('square', '[100,200,300,800]'),
    ],
)
def test_a_unit_is_never_guessed_from_the_numbers(coordinates, answer):
    one = sample(answer, truth=[[40, 40, 120, 160]], size=(200, 400))
    assert evaluate([one], coordinates=coordinates) == {'box/accuracy': 0, 'box/mean_iou': 0, 'box/malformed': 100}


def test_pixels_are_those_of_the_image_that_the_model_saw():
    one = sample('{"bbox_2d": [20, 20, 60, 80]}', truth=[[40, 40, 120, 160]], size=(200, 400))
    assert evaluate([one], coordinates='pixels')['box/mean_iou'] < 50
    assert evaluate([dict(one, input_size=(100, 200))], coordinates='pixels')['box/mean_iou'] == pytest.approx(100)
    with pytest.raises(ValueError, match='ReferringBoxMetric: input_size='):
        evaluate([dict(one, input_size=(0, 200))], coordinates='pixels')
