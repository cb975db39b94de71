"""Reads the results of the runs of the gallery: numbers of logs, figures of hooks, and predictions as figures."""

import io
import json
from pathlib import Path
from typing import NamedTuple

import mmengine
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

from mergemix_mm.evaluation.metrics.answer_boxes import read_boxes
from mergemix_mm.utils.images import read_image
from mergemix_mm.visualization import draw_beta_sweep, draw_image_grid, draw_reward_curves

NUM_IMAGES = 8
MIN_SCORE = 0.3


class Figure(NamedTuple):
    """A caption, and the bytes of a PNG file."""

    caption: str
    png: bytes


class Shown(NamedTuple):
    """The results of a method: values by their names, and figures."""

    numbers: dict[str, str]
    figures: list[Figure]


def show_mergemix(folder: Path) -> Shown:
    """Accuracy and calibration, the last page of mixed samples, the reliability diagram."""
    log = read_log(folder)
    numbers = {
        'top-1 accuracy': percent(log, 'accuracy/top1'),
        'calibration error': percent(log, 'calibration/ece'),
    }
    return Shown(
        numbers,
        [
            hook_figure(folder, 'mixed_samples', 'What is mixed: the mask keeps what the model attends to.'),
            hook_figure(folder, 'reliability', 'How far confidence can be trusted.'),
        ],
    )


def show_simpo(folder: Path) -> Shown:
    """Accuracy and preference, rewards over the steps, the last page of losers."""
    log = read_log(folder)
    steps = [record for record in log if 'reward_margin' in record]
    keys = ('step', 'reward_chosen', 'reward_rejected', 'reward_margin', 'ratio_mean')
    curves = draw_reward_curves({key: [record[key] for record in steps] for key in keys})
    numbers = {
        'answers right, prior flipped': percent(log, 'answer/accuracy'),
        'prefers the clean image': f'{100 * last(log, "reward_accuracy"):.0f}%',
        'margin': f'{last(log, "reward_margin"):.2f}',
    }
    return Shown(
        numbers,
        [
            Figure('Rewards of the answers given the clean and the mixed image.', to_png(curves)),
            hook_figure(folder, 'mixed_samples', 'What loses: the same answers given these mixed images.'),
        ],
    )


def show_aia(folder: Path) -> Shown:
    """Accuracy and interaction, the curves against their targets, and drawings."""
    log, found = read_log(folder), mmengine.load(folder / 'predictions.pkl')[:NUM_IMAGES]
    images = [to_pixels(sample['pred_image']) for sample in found]
    numbers = {
        'answers right': percent(log, 'answer/accuracy'),
        'drawings right in colour and place': percent(read_metrics(folder / 'test'), 'generation/both'),
        'interaction, generation': f'{last(log, "interaction_gen"):.2f}',
        'interaction, understanding': f'{last(log, "interaction_und"):.2f}',
    }
    return Shown(
        numbers,
        [
            hook_figure(folder, 'interaction_curves', 'Interaction of every layer, and its target.'),
            Figure('What it draws, in a mosaic of 8 x 8 colours.', to_png(draw_image_grid(images, captions_of(found)))),
        ],
    )


def show_sphinx(folder: Path) -> Shown:
    """Accuracy of grounding, and answers as boxes beside the true ones."""
    found = mmengine.load(folder / 'predictions.pkl')[:NUM_IMAGES]
    dataset = DATASETS.build({**read_config(folder).test_dataloader.dataset, 'pipeline': []})
    records = [dataset[index] for index in range(len(found))]
    boxes = [read_boxes(sample, 'gallery') for sample in found]
    grid = draw_image_grid(
        [np.asarray(record['images'][0]) for record in records],
        [record['expression'] for record in records],
        [[] if one is None else one.tolist() for one in boxes],
        [[record['box']] for record in records],
    )
    metrics = read_metrics(folder / 'test')
    numbers = {
        'boxes right (IoU at least 0.5)': percent(metrics, 'box/accuracy'),
        'mean IoU': percent(metrics, 'box/mean_iou'),
        'malformed answers': percent(metrics, 'box/malformed'),
    }
    return Shown(numbers, [Figure('Where is it? The boxes are read from the text of the answers.', to_png(grid))])


def show_weights(folder: Path) -> Shown:
    """Scores of both domains over beta."""
    found = json.loads((folder / 'sweep.json').read_text())['runs']['weights: specialists/0']
    betas = sorted(float(key.split()[1].split('/')[0]) for key in found if key.startswith('beta ') and '/color' in key)
    scores = {
        f'what {name}?': [found[f'beta {beta}/{task}'] for beta in betas]
        for task, name in dict(color='colour', shape='shape').items()
    }
    mean = np.mean(list(scores.values()), axis=0)
    both = (found['both/color'] + found['both/shape']) / 2
    figure = draw_beta_sweep(betas, scores, {'one model trained on both': both})
    best = int(mean.argmax())
    numbers = {
        f'mean at the best beta, {betas[best]:g}': f'{mean[best]:.1f}%',
        'means of the two models': f'{mean[-1]:.1f}% and {mean[0]:.1f}%',
        'one model trained on both': f'{both:.1f}%',
    }
    return Shown(numbers, [Figure('beta = 1 is the model of colours, beta = 0 that of shapes.', to_png(figure))])


def show_detection(folder: Path) -> Shown:
    """mAP, and detections beside the true boxes."""
    found = mmengine.load(folder / 'predictions.pkl')[:NUM_IMAGES]
    annotations = json.loads(Path(read_config(folder).test_evaluator.ann_file).read_text())['annotations']
    true = [
        [(x, y, x + w, y + h) for x, y, w, h in (one['bbox'] for one in annotations if one['image_id'] == image)]
        for image in (sample['img_id'] for sample in found)
    ]
    instances = [sample['pred_instances'] for sample in found]
    grid = draw_image_grid(
        [np.asarray(read_image(sample['img_path'])) for sample in found],
        predicted=[one['bboxes'][one['scores'] >= MIN_SCORE].tolist() for one in instances],
        true=true,
    )
    metrics = read_metrics(folder / 'test')
    numbers = {
        'box mAP': f'{100 * last(metrics, "coco/bbox_mAP"):.1f}%',
        'box mAP at IoU 0.5': f'{100 * last(metrics, "coco/bbox_mAP_50"):.1f}%',
    }
    return Shown(numbers, [Figure(f'Detections with a score of at least {MIN_SCORE}.', to_png(grid))])


def read_log(folder: Path) -> list[dict]:
    """The logged values of a training in order, including those before interruptions."""
    return [
        json.loads(line)
        for path in sorted(folder.glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
        if line.strip()
    ]


def read_metrics(folder: Path) -> list[dict]:
    """The metrics of the last test of a folder, as one record of a log."""
    return [json.loads(max(folder.glob('*/*.json')).read_text())]


def read_config(folder: Path) -> Config:
    """The config of a run with its options, as MMEngine saved it."""
    return Config.fromfile(next(folder.glob('*.py')))


def last(log: list[dict], key: str) -> float:
    """The last value of a key, or NaN if it was never logged."""
    return next((record[key] for record in reversed(log) if key in record), float('nan'))


def percent(log: list[dict], key: str) -> str:
    """The last value of a key in percent."""
    return f'{last(log, key):.1f}%'


def hook_figure(folder: Path, name: str, caption: str) -> Figure:
    """The last figure of this name that a hook or a metric wrote."""
    pictures = folder.glob(f'*/vis_data/vis_image/{name}*.png')
    return Figure(caption, max(pictures, key=lambda path: path.stat().st_mtime).read_bytes())


def captions_of(samples: list[dict]) -> list[str]:
    """The prompts of generated images."""
    return [sample['prompt'] for sample in samples]


def to_pixels(image) -> np.ndarray:
    """Convert a tensor [3, H, W] in [0, 1] to [H, W, 3] uint8."""
    return (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def to_png(image: np.ndarray) -> bytes:
    """Encode [H, W, 3] uint8 as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format='PNG', optimize=True)
    return buffer.getvalue()
