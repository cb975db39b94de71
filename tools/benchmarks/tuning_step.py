"""Cost of one preference-tuning step of a small LLaVA, in time and memory, against supervised fine-tuning only."""

import argparse
from collections.abc import Sequence
from functools import partial

from lib.measure import add_clock_argument, add_common_arguments, measure_arms, prepare, ratio_cells, write_json
from lib.release_scheme import ForkScoring
from lib.steps import (
    TINY_LLAVA,
    build_llava,
    idle_optimizer,
    llava_losses,
    random_conversations,
    release_llava_losses,
    small_llava,
    training_step,
)

from mergemix_mm.utils.tables import markdown_table

SFT = 'SFT'
# These do the same job: the loser gets no gradient.
DETACHED = 'SFT + SimPO, MergeMix, detach_loser=True'
RELEASE = 'scheme of the release, MergeMix'
TOWER_ONLY = 'the same, only the tower scores'
MIXERS = {
    'MergeMix': dict(type='MergeMix'),
    'MergeMix, score_scale=0.5': dict(type='MergeMix', score_scale=0.5),
    'MergeMix, topk': dict(type='MergeMix', mask='topk'),
    'inverse': dict(type='MergeMix', mask='inverse'),
    'blur': dict(type='SalientBlur'),
    'swap': dict(type='SwapImages'),
    'Mixup': dict(type='Mixup', alpha=1.0),
    'CutMix': dict(type='CutMix', alpha=1.0),
    'ResizeMix': dict(type='ResizeMix', alpha=1.0),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The arms take turns, and each step is compared with the SFT step of the same round. A step is mixing, '
        'forward passes, backward pass and AdamW update. The tower is frozen; projector and language model train. '
        'Memory is that of torch tensors, above weights, gradients and optimizer state.',
    )
    parser.add_argument(
        '--mixers', nargs='+', choices=MIXERS, default=list(MIXERS), help='to measure beside the release (default: all)'
    )
    parser.add_argument('--batch-size', type=int, default=4, help='(default: %(default)s)')
    parser.add_argument('--image-size', type=int, default=224, help='in pixels, patches of 16 (default: %(default)s)')
    parser.add_argument('--prompt', type=int, default=40, help='prompt tokens (default: %(default)s)')
    parser.add_argument('--answer', type=int, default=60, help='answer tokens (default: %(default)s)')
    parser.add_argument('--vocabulary', type=int, default=32000, help='(default: %(default)s)')
    parser.add_argument('--width', type=int, default=384, help='of tower and language model (default: %(default)s)')
    parser.add_argument('--tower-layers', type=int, default=12, help='(default: %(default)s)')
    parser.add_argument('--text-layers', type=int, default=8, help='(default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=5, help='steps per arm (default: %(default)s)')
    add_common_arguments(parser)
    add_clock_argument(parser)
    args = parser.parse_args(argv)
    if args.quick:
        vars(args).update(TINY_LLAVA, prompt=4, answer=4, rounds=1)
    if args.batch_size < 2:
        parser.error(f'--batch-size {args.batch_size} must be at least 2: an image is mixed with another one')
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    """Measure all arms, and print them against SFT.

    Returns:
        dict: ``times`` (s) and ``memory`` (MB) of the arms, by name.
    """
    args = parse_args(argv)
    prepare(args)
    config = small_llava(**{key: getattr(args, key) for key in TINY_LLAVA})
    batch = random_conversations(config, args.batch_size, args.prompt, args.answer)
    sft = build_llava(dict(type='HFVisionLanguageModel', config=config))
    tuners = {f'SFT + SimPO, {name}': build_llava(sft.vlm, MIXERS[name]) for name in args.mixers}
    losses = {name: partial(llava_losses, tuner) for name, tuner in ({SFT: sft} | tuners).items()}
    losses[DETACHED] = partial(llava_losses, build_llava(sft.vlm, MIXERS['MergeMix'], detach_loser=True))
    release = partial(release_llava_losses, build_llava(sft.vlm, ForkScoring()))
    losses[RELEASE] = release
    losses[TOWER_ONLY] = partial(release, language_model_scores=False)
    optimizer = idle_optimizer(sft)
    arms = {name: training_step(partial(function, batch), optimizer) for name, function in losses.items()}
    measured = measure_arms(arms, args.rounds, clock=args.clock)
    times, memory = measured['times'], measured['memory']
    rows = [(name, *ratio_cells(times[name], times[SFT]), f'{memory[name]:.0f}') for name in arms]
    print(markdown_table(('step', 'time / SFT', 'range over the rounds', 'memory (MB)'), rows))
    if args.output:
        write_json(args.output, dict(benchmark='tuning_step', options=vars(args), **measured))
    return measured


if __name__ == '__main__':
    main()
