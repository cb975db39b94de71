"""Cost of AIA in a whole training step of a small Janus, in time and memory: with fused intensity, with attention maps,
and without AIA.
"""

import argparse
from collections.abc import Sequence

import torch
from lib.measure import add_common_arguments, measure_arms, prepare, ratio_cells, write_json
from lib.steps import (
    TASKS,
    TINY_JANUS,
    Batch,
    build_janus,
    idle_optimizer,
    janus_step,
    num_image_tokens,
    random_tasks,
    small_janus,
)

from mergemix_mm.models.tuners import UnifiedTuner
from mergemix_mm.utils.tables import markdown_table

NTP, FUSED, MAPS = 'next tokens alone', 'AIA, fused', 'AIA, attention maps'
BACKENDS = {NTP: None, FUSED: 'fused', MAPS: 'eager'}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The arms take turns, and each step is compared with the step without AIA of the same round. A step is '
        'forward, losses, backward and AdamW update of the projector, the language model and the generation parts. The '
        'tower is frozen, images are given as codes, and no prompt is dropped. All layers are aligned. Memory is that '
        'of torch tensors, above weights, gradients and optimizer state.',
    )
    parser.add_argument('--batch-size', type=int, default=2, help='(default: %(default)s)')
    parser.add_argument('--image-size', type=int, default=384, help='in pixels, patches of 16 (default: %(default)s)')
    parser.add_argument('--length', type=int, default=1152, help='tokens, image tokens included (default: %(default)s)')
    parser.add_argument('--answer', type=int, default=60, help='answer tokens (default: %(default)s)')
    parser.add_argument('--vocabulary', type=int, default=32000, help='(default: %(default)s)')
    parser.add_argument('--codes', type=int, default=16384, help='entries of the codebook (default: %(default)s)')
    parser.add_argument('--width', type=int, default=384, help='of tower and language model (default: %(default)s)')
    parser.add_argument('--tower-layers', type=int, default=6, help='(default: %(default)s)')
    parser.add_argument('--text-layers', type=int, default=8, help='(default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=5, help='steps per arm (default: %(default)s)')
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.quick:
        vars(args).update(TINY_JANUS, length=20, answer=4, rounds=1)
    images = num_image_tokens(args.image_size)
    if args.length < images + args.answer + 2:
        parser.error(f'--length {args.length} must hold {images} image tokens, --answer and 2 more')
    return args


def measure(args: argparse.Namespace, tuner: UnifiedTuner, batch: Batch) -> dict[str, dict]:
    """Times (s) and peak memory (MB) of the arms on a batch; both ways to record must agree."""
    optimizer = idle_optimizer(tuner)
    arms = {name: janus_step(tuner, batch, optimizer, backend) for name, backend in BACKENDS.items()}
    torch.testing.assert_close(arms[FUSED](), arms[MAPS](), rtol=1e-3, atol=1e-5)
    return measure_arms(arms, args.rounds)


def table(measured: dict[str, dict]) -> str:
    """One row for each task and arm, against the step of the task without AIA."""
    rows = []
    for task, results in measured.items():
        for name, seconds in results['times'].items():
            ratios = ratio_cells(seconds, results['times'][NTP])
            rows.append((TASKS[task], name, *ratios, f'{results["memory"][name]:.0f}'))
    return markdown_table(('batch', 'step', 'time / without AIA', 'range over the rounds', 'memory (MB)'), rows)


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    """Measure all arms on batches of both tasks, and print them against the step without AIA."""
    args = parse_args(argv)
    prepare(args)
    config = small_janus(**{key: getattr(args, key) for key in TINY_JANUS})
    tuner = build_janus(dict(type='JanusModel', config=config))
    batches = random_tasks(config, args.batch_size, args.length, args.answer)
    measured = {task: measure(args, tuner, batch) for task, batch in batches.items()}
    print(table(measured))
    if args.output:
        write_json(args.output, dict(benchmark='aia_step', options=vars(args), results=measured))
    return measured


if __name__ == '__main__':
    main()
