"""Referring segmentation: boxes, masks, their scores, the readers and the command."""

import json
import sys

import numpy as np
import pytest
import tiny_applications
import tiny_sphinx
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS
from PIL import Image
from repository_configs import ROOT, quick_mmengine, runner_of_two_steps  # noqa: F401
from tiny_applications import BOX, EXPRESSION, SIZE

from mergemix_mm.datasets import EncodeConversation, RecordError
from mergemix_mm.functional import boxes_to_square, format_boxes
from mergemix_mm.toy import ShapesTaskDataset
from projects.referring_segmentation.models.grounder import Grounder
from projects.referring_segmentation.models.refcoco_masks import RefCOCOMaskDataset, ReferringSegmentationTask
from projects.referring_segmentation.models.segmentation_iou import SegmentationIoU
from projects.referring_segmentation.models.segmenters import GrabCutSegmenter, SamSegmenter
from projects.referring_segmentation.models.shapes_masks import ReferringShapesDataset
from projects.referring_segmentation.run import main

FOLDER = ROOT / 'projects' / 'referring_segmentation' / 'configs'
TRUE_MASK = np.zeros(SIZE, dtype=bool)
TRUE_MASK[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True


def fill(image, box):
    """A segmenter that takes all of the box."""
    mask = np.zeros((image.height, image.width), dtype=bool)
    x1, y1, x2, y2 = (round(value) for value in box.tolist())
    mask[y1:y2, x1:x2] = True
    return mask


def sample(answer, truth=TRUE_MASK, **fields):
    image = Image.new('RGB', SIZE[::-1])
    return dict(pred_answer=answer, image=image, image_size=SIZE, align='center', gt_mask=truth, **fields)


def answer_of(box, size=SIZE):
    return format_boxes(boxes_to_square(torch.tensor([box]), size).tolist(), decimals=4)


def score(samples, segmenter=fill):
    metric = SegmentationIoU(segmenter)
    metric.process(None, samples)
    return metric.evaluate(len(samples))


# From words to a box, and from a box to a mask.


def test_the_answer_becomes_a_box_in_pixels_of_the_image(sphinx_folder):
    answer, box = Grounder(str(sphinx_folder), 'cpu')(tiny_applications.picture(), f' {EXPRESSION}. ')
    # The image, 60 wide and 40 high, lies in a square of 60 with 10 pixels above it.
    assert answer == '[0.167,0.500,0.500,0.767]'
    assert box.tolist() == pytest.approx([0.167 * 60, 20, 30, 0.767 * 60 - 10])


def test_sam_is_prompted_in_its_own_pixels_and_answers_in_those_of_the_image(sam_folder):
    segmenter, prompts = SamSegmenter(str(sam_folder), 'cpu'), []
    segmenter.model.register_forward_pre_hook(
        lambda module, args, kwargs: prompts.append(kwargs['input_boxes']), with_kwargs=True
    )
    image = tiny_applications.picture()
    masks = [segmenter(image, torch.tensor(box, dtype=torch.float64)) for box in (BOX, (40, 5, 50, 10))]
    # The longer side, 60, becomes 64.
    assert torch.allclose(prompts[0], torch.tensor([[BOX]]) * (64 / 60), atol=0.5)
    assert all(mask.shape == SIZE and mask.dtype == bool for mask in masks)
    assert (masks[0] != masks[1]).any()


def test_the_mask_of_sam_lies_where_its_logits_do(sam_folder):
    from types import SimpleNamespace

    segmenter = SamSegmenter(str(sam_folder), 'cpu')
    # Logits of the padded square, 4 pixels of 64 each: the image, 64 x 43 of it, has its left quarter in the mask.
    logits = torch.full((1, 1, 1, 16, 16), -9.0)
    logits[..., :4] = 9
    segmenter.model = lambda **_: SimpleNamespace(pred_masks=logits)
    segmenter.model.device = 'cpu'
    mask = segmenter(tiny_applications.picture(), torch.tensor(BOX))
    assert mask[:, :14].all() and not mask[:, 16:].any()


@pytest.mark.parametrize(
    ('box', 'expected'),
    [
        (BOX, TRUE_MASK),
        ((7.6, 17.2, 33.4, 38.9), TRUE_MASK),
        ((20, 20, 20, 30), np.zeros(SIZE, dtype=bool)),
        ((0, 0, SIZE[1], SIZE[0]), np.ones(SIZE, dtype=bool)),
    ],
    ids=['tight', 'loose', 'empty', 'whole image'],
)
def test_grabcut_finds_the_square_in_a_box(box, expected):
    mask = GrabCutSegmenter()(tiny_applications.picture(), torch.tensor(box, dtype=torch.float64))
    assert np.array_equal(mask, expected)


# Scores.


def test_perfect_boxes_score_100():
    assert score([sample(answer_of(BOX))] * 2) == {'mask/ciou': 100, 'mask/miou': 100, 'mask/malformed': 0}


def test_cumulative_and_mean_iou_by_hand():
    left = (BOX[0], BOX[1], 20, BOX[3])  # Half of the object, which has 20 x 16 = 320 pixels.
    small = np.zeros(SIZE, dtype=bool)
    small[:4, :5] = True  # 20 pixels; the answer has 40 and holds them all.
    found = score([sample(answer_of(left)), sample(answer_of((0, 0, 10, 4)), small), sample('no box', small)])
    assert found['mask/ciou'] == pytest.approx(100 * (160 + 20) / (320 + 40 + 20))
    assert found['mask/miou'] == pytest.approx(100 * (0.5 + 0.5 + 0) / 3)
    assert found['mask/malformed'] == pytest.approx(100 / 3)


@pytest.mark.parametrize('answer', ['', '[0.1,0.2]', '[0.5,0.5,0.1,0.1]', '[0,0,1,1;0,0,1,1]', '[0.1,0.2,0.3'])
def test_a_malformed_box_is_an_empty_mask(answer):
    assert score([sample(answer)], segmenter=None) == {'mask/ciou': 0, 'mask/miou': 0, 'mask/malformed': 100}


def test_splits_are_scored_by_themselves_and_mistakes_named():
    found = score([sample(answer_of(BOX), split='testA'), sample('', split='testB')])
    assert (found['mask/testA/miou'], found['mask/testB/miou'], found['mask/miou']) == (100, 0, 50)
    with pytest.raises(ValueError, match=r'the true mask of a\.json: ref 1 is empty'):
        score([sample(answer_of(BOX), np.zeros(SIZE, dtype=bool), source='a.json: ref 1')])
    with pytest.raises(KeyError, match="SegmentationIoU: a data sample has no 'gt_mask'"):
        score([{key: value for key, value in sample('').items() if key != 'gt_mask'}])


# Data.


def test_drawn_records_are_those_of_the_package_with_the_mask_of_the_thing():
    plain, masked = ShapesTaskDataset('grounding', length=20), ReferringShapesDataset(length=20)
    for expected, record in zip(map(plain.__getitem__, range(20)), map(masked.__getitem__, range(20))):
        assert np.array_equal(np.asarray(record['images'][0]), np.asarray(expected['images'][0]))
        assert (record['expression'], record['box']) == (expected['expression'], expected['box'])
        x1, y1, x2, y2 = record['box']
        assert record['mask'][y1:y2, x1:x2].sum() == record['mask'].sum() > 0
        # The box is tight.
        assert record['mask'][[y1, y2 - 1]].any(1).all() and record['mask'][:, [x1, x2 - 1]].any(0).all()


@pytest.fixture
def refcoco(tmp_path):
    """Three references to one image: a polygon, and its run-length encoding with and without compression."""
    from pycocotools import mask as coco_mask

    x1, y1, x2, y2 = BOX
    runs = coco_mask.encode(np.asfortranarray(TRUE_MASK, dtype=np.uint8))
    first = x1 * SIZE[0] + y1  # Columns follow each other.
    counts = [first, *[y2 - y1, SIZE[0] - (y2 - y1)] * (x2 - x1 - 1), y2 - y1]
    segmentations = [
        [[x1, y1, x2, y1, x2, y2, x1, y2]],
        dict(size=list(SIZE), counts=runs['counts'].decode()),
        dict(size=list(SIZE), counts=[*counts, TRUE_MASK.size - sum(counts)]),
    ]
    tiny_applications.picture().save(tmp_path / '1.png')
    boxes = dict(bbox=[x1, y1, x2 - x1, y2 - y1], image_id=1, category_id=1)
    instances = dict(
        images=[dict(id=1, file_name='1.png', height=SIZE[0], width=SIZE[1])],
        annotations=[dict(boxes, id=i, segmentation=one) for i, one in enumerate(segmentations)],
        categories=[dict(id=1, name='square')],
    )
    refs = [
        dict(ref_id=i, ann_id=i, split='testA', sentences=[dict(sent_id=i, sent=EXPRESSION)])
        for i in range(len(segmentations))
    ]
    (tmp_path / 'instances.json').write_text(json.dumps(instances))
    (tmp_path / 'refs.json').write_text(json.dumps(refs))
    return tmp_path


def open_refcoco(folder):
    return RefCOCOMaskDataset('refs.json', split='testA', data_root=str(folder))


def test_polygons_and_both_run_length_encodings_become_the_same_mask(refcoco):
    dataset = open_refcoco(refcoco)
    assert len(dataset) == 3
    for record in map(dataset.__getitem__, range(3)):
        assert np.array_equal(record['mask'], TRUE_MASK)
        assert record['box'] == list(BOX)


def test_an_annotation_without_segmentation_is_named(refcoco):
    path = refcoco / 'instances.json'
    content = json.loads(path.read_text())
    content['annotations'][1].pop('segmentation')
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match='ref 1, sentence 1: annotation 1: needs its segmentation'):
        open_refcoco(refcoco)[1]


def test_a_missing_pycocotools_is_named_with_its_command(refcoco, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pycocotools', None)
    with pytest.raises(ImportError, match='run `pip install pycocotools`'):
        open_refcoco(refcoco)[0]


def test_the_task_keeps_image_and_mask_and_refuses_a_mask_of_another_size(refcoco):
    record = open_refcoco(refcoco)[0]
    encode = EncodeConversation(tiny_sphinx.processor(), generate=True)
    found = encode(ReferringSegmentationTask()(record))['data_samples']
    assert found.image.size == SIZE[::-1] and np.array_equal(found.gt_mask, TRUE_MASK)
    assert found.gt_boxes == [list(BOX)] and found.image_size == SIZE
    with pytest.raises(RecordError, match=r'referring_segmentation: has a mask of \(60, 40\)'):
        ReferringSegmentationTask()(record | dict(mask=TRUE_MASK.T))


# The command and the configs.


def test_the_command_writes_a_figure(sphinx_folder, sam_folder, picture_file, tmp_path, capsys):
    for option in (['--grabcut'], ['--sam', str(sam_folder)]):
        out = tmp_path / f'{option[0]}.png'
        main([str(sphinx_folder), str(picture_file), EXPRESSION, *option, '--device', 'cpu', '--out', str(out)])
        with Image.open(out) as figure:
            assert figure.width > 2 * figure.height
    printed = capsys.readouterr().out
    assert f'{EXPRESSION}: [0.167,0.500,0.500,0.767] -> box (10.0, 20.0, 30.0, 36.0) -> mask of 320 pixels' in printed


def test_the_command_names_what_it_cannot_use(sphinx_folder, picture_file, tmp_path):
    def run(*arguments):
        main([*map(str, arguments), '--device', 'cpu', '--out', str(tmp_path / 'out.png')])

    with pytest.raises(SystemExit, match=r'IMAGE: .*missing\.png cannot be read'):
        run(sphinx_folder, tmp_path / 'missing.png', EXPRESSION)
    with pytest.raises(SystemExit, match='MODEL: SphinxProcessor: there is no'):
        run(tmp_path, picture_file, EXPRESSION)
    with pytest.raises(SystemExit, match='--sam: '):
        run(sphinx_folder, picture_file, EXPRESSION, '--sam', tmp_path / 'no_sam')
    tiny_applications.save_sphinx(tmp_path / 'other', answer='there is none')
    with pytest.raises(SystemExit, match="'the red square': the answer 'there is none' does not name one box"):
        run(tmp_path / 'other', picture_file, EXPRESSION)
    assert not (tmp_path / 'out.png').exists()


def test_the_benchmark_of_refcoco_reads_its_files_and_scores_perfect_boxes(refcoco, sam_folder):
    cfg = Config.fromfile(FOLDER / 'refcoco-masks.py')
    dataset = cfg.test_dataloader.dataset
    dataset.update(data_root=str(refcoco), data_prefix=None, ref_file='refs.json', ann_file='instances.json')
    dataset.pipeline.append(dict(type='EncodeConversation', processor=tiny_sphinx.processor(), generate=True))
    cfg.test_evaluator[1].segmenter.update(pretrained=str(sam_folder), device='cpu')
    box, mask = (METRICS.build(metric) for metric in cfg.test_evaluator)
    samples = [one['data_samples'].to_dict() | dict(pred_answer=answer_of(BOX)) for one in DATASETS.build(dataset)]
    for metric in (box, mask):
        metric.process(None, samples)
    assert box.evaluate(3)['box/accuracy'] == 100
    found = mask.evaluate(3)
    sam = mask.segmenter(tiny_applications.picture(), torch.tensor(BOX))
    assert found['mask/miou'] == pytest.approx(100 * (sam & TRUE_MASK).sum() / (sam | TRUE_MASK).sum(), abs=1)


def test_the_benchmark_of_drawn_shapes_scores_a_tiny_sphinx(tmp_path, monkeypatch):
    torch.manual_seed(0)
    cfg = Config.fromfile(ROOT / 'configs/_base_/models/tiny-sphinx_shapes.py')
    cfg.merge_from_dict({key: value for key, value in Config.fromfile(FOLDER / 'shapes-masks.py').items()})
    cfg.test_dataloader.batch_size = cfg.test_dataloader.dataset.length = 4
    cfg.test_dataloader.dataset.pipeline.append(dict(cfg.encode, generate=True))
    found = runner_of_two_steps(cfg, tmp_path, monkeypatch).test()
    # It has learnt nothing.
    assert (found['mask/ciou'], found['mask/miou'], found['mask/malformed']) == (0, 0, 100)
