"""The methods of the gallery: their commands, and the functions that read their results."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from _results import (
    Shown,
    show_aia,
    show_detection,
    show_mergemix,
    show_simpo,
    show_sphinx,
    show_weights,
)


class Step(NamedTuple):
    """A command, in which ``{folder}`` and ``{checkpoint}`` are replaced, and what --quick appends to it."""

    command: str
    quick: str


class Entry(NamedTuple):
    """A method: its folder, headline, text, commands, the function of its results, and the modules that it needs."""

    name: str
    title: str
    text: str
    steps: tuple[Step, ...]
    show: Callable[[Path], Shown]
    needs: tuple[str, ...] = ()


def _train(config: str, folder: str = '{folder}', options: str = '', quick: str = '') -> Step:
    # Without a checkpoint, `--resume` starts from the beginning.
    return _step(f'tools/train.py configs/{config}.py --work-dir {folder} --resume', options, quick)


def _test(config: str, quick: str, options: str = '') -> Step:
    command = f'tools/test.py configs/{config}.py {{checkpoint}} --work-dir {{folder}}/test'
    return _step(f'{command} --out {{folder}}/predictions.pkl', options, quick)


def _step(command: str, options: str, quick: str) -> Step:
    # The quick options continue the list of --cfg-options, if there is one.
    return Step(f'{command} --cfg-options {options}', quick) if options else Step(command, f'--cfg-options {quick}')


_STEPS = 'train_cfg.max_iters=4 train_cfg.val_interval=4 default_hooks.logger.interval=1'
_SMALL = f'{_STEPS} train_dataloader.batch_size=4 train_dataloader.sampler.batch_size=4'
MERGEMIX = 'mergemix/vit-tiny_1xb32-mergemix-coslr-30e_digits'
SIMPO = 'simpo/tiny-llava_1xb64-simpo-mergemix-coslr-300i_shapes'
AIA = 'aia/tiny-janus_1xb32-aia-coslr-400i_shapes'
ALIGN = 'sphinx/tiny-sphinx_1xb16-align-coslr-400i_shapes'
GROUND = 'sphinx/tiny-sphinx_1xb16-grounding-coslr-1000i_shapes'
SPHINX = 'sphinx/tiny-sphinx_1xb16-tasks-coslr-600i_shapes'
DETECTION = 'transfer/tiny-dab-detr-vit_1xb8-scratch-coslr-20e_shapes'
_ALIGNED, _GROUNDED = (f'model.vlm.pretrained={{folder}}/{stage}/pretrained' for stage in ('align', 'ground'))
_FEW = ' '.join(
    f'{split}_dataloader.dataset.{key}'
    for split in ('train', 'val', 'test')
    for key in ('folder={folder}/shapes', 'num_train=8', 'num_val=4')
)
_ANNOTATIONS = ' '.join(
    f'{split}_evaluator.ann_file={{folder}}/shapes/annotations/val.json' for split in ('val', 'test')
)

ENTRIES = (
    Entry(
        'mergemix',
        'MergeMix',
        'A small vision transformer learns handwritten digits, half of the batches mixed by its own attention.',
        (
            _train(
                MERGEMIX,
                options='custom_hooks.1.num_images=4',
                quick='train_cfg.max_epochs=4 train_cfg.val_interval=4 custom_hooks.1.interval=4 '
                'train_dataloader.dataset.train_per_class=8 val_dataloader.dataset.test_ratio=0.05',
            ),
        ),
        show_mergemix,
    ),
    Entry(
        'simpo',
        'Mixed SimPO',
        'A tiny LLaVA learns questions on drawn shapes, and to prefer an answer given the clean image.',
        (
            _train(
                SIMPO,
                options='custom_hooks.2.num_images=4',
                quick=f'{_SMALL} val_dataloader.dataset.length=20 custom_hooks.2.interval=2',
            ),
        ),
        show_simpo,
    ),
    Entry(
        'aia',
        'AIA',
        'A tiny Janus answers questions and draws; the attention between image and text is drawn towards a target for '
        'each task.',
        (
            _train(AIA, quick=f'{_SMALL} val_dataloader.dataset.length=20 custom_hooks.2.interval=2'),
            _test(AIA, 'test_dataloader.dataset.length=4'),
        ),
        show_aia,
    ),
    Entry(
        'sphinx',
        'SPHINX',
        'A tiny language model reads a vision transformer and a ConvNeXt, mixed; after captions it learns to find '
        'things, and then five tasks at once; it answers with boxes where it is asked for a thing.',
        (
            _train(ALIGN, '{folder}/align', quick=f'{_SMALL} train_cfg.val_interval=1000'),
            _train(GROUND, '{folder}/ground', options=_ALIGNED, quick=f'{_SMALL} val_dataloader.dataset.length=8'),
            _train(SPHINX, options=_GROUNDED, quick=f'{_SMALL} val_dataloader.dataset.length=8'),
            _test(SPHINX, options=_GROUNDED, quick='test_dataloader.dataset.length=8'),
        ),
        show_sphinx,
    ),
    Entry(
        'weights',
        'Mixing weights',
        'Two models that branched from one start, one trained on colours and one on shapes, and their mixes.',
        (
            Step(
                'tools/benchmarks/shapes_sphinx.py --study weights --seeds 1 --workers 1 --output {folder}/sweep.json',
                '--quick',
            ),
        ),
        show_weights,
    ),
    Entry(
        'detection',
        'In a detector',
        'DAB-DETR of MMDetection on a small vision transformer, from scratch, on drawn shapes.',
        (
            _train(
                DETECTION,
                quick=f'train_cfg.max_epochs=2 train_cfg.val_interval=2 default_hooks.logger.interval=1 {_FEW} '
                f'{_ANNOTATIONS}',
            ),
            _test(DETECTION, f'{_FEW} {_ANNOTATIONS}'),
        ),
        show_detection,
        needs=('mmdet', 'pycocotools'),
    ),
)
