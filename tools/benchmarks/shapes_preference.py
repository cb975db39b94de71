"""Does preference tuning make a model look at the image? A tiny LLaVA learns drawn shapes with an 80/20 prior of the
answers and is tested with the prior flipped. A model that answers only by the prior falls from 80% to 20%.

All arms start from one pre-trained tower, see the same batches and take the same number of steps. Each seed has its own
weights and order, which the arms share, so that differences are paired. Every finished run is written to --output at
once. A benchmark that is started again skips these runs.
"""

import argparse
import time
from pathlib import Path

import torch
from lib.llava import build_tuner, encode, evaluate, train
from lib.runs import Runs, add_run_arguments, paired_table, run_missing
from lib.tower import pretrain_tower

SIMPO = dict(type='SimPOHead')
# A loser that is the clean image gives no gradient (test_an_unchanged_loser_gives_no_gradient), which makes SFT of it.
ARMS = {
    'SFT': (dict(type='SFTHead'), None),
    'Mixup': (SIMPO, dict(type='Mixup', alpha=1.0)),
    'CutMix': (SIMPO, dict(type='CutMix', alpha=1.0)),
    'ResizeMix': (SIMPO, dict(type='ResizeMix', alpha=1.0)),
    'MergeMix': (SIMPO, dict(type='MergeMix')),
    'swap': (SIMPO, dict(type='SwapImages')),
    'inverse': (SIMPO, dict(type='MergeMix', mask='inverse')),
    'blur': (SIMPO, dict(type='SalientBlur')),
}
PRIOR = 0.8
TEST_SEED = 2  # Settings were chosen on the images of seed 1.


def run(arm: str, seed: int, steps: int, num_train: int, num_test: int, tower: str) -> dict[str, float]:
    """Train one arm with one seed and test it.

    Returns:
        dict: The numbers of :func:`evaluate` on new images with the prior flipped; ``accuracy_unseen``, the same on
            pairs of colour and shape that are not in training; ``accuracy_same``, with the prior of training;
            ``seconds``.
    """
    torch.set_num_threads(1)
    head, mixer = ARMS[arm]
    batch, _ = encode(num_train, split='train', answer_prior=PRIOR)
    start = time.perf_counter()
    tuner = build_tuner(Path(tower), head, mixer, seed)
    train(tuner, batch, steps, seed)
    seconds = time.perf_counter() - start
    flipped = evaluate(tuner, num_test, split='train', seed=TEST_SEED, answer_prior=1 - PRIOR)
    unseen = evaluate(tuner, num_test, split='val', seed=TEST_SEED, answer_prior=1 - PRIOR)
    same = evaluate(tuner, num_test, split='train', seed=TEST_SEED, answer_prior=PRIOR)
    return dict(**flipped, accuracy_unseen=unseen['accuracy'], accuracy_same=same['accuracy'], seconds=seconds)


def main(argv: list[str] | None = None) -> Runs:
    """Pre-train the tower if it is missing, run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_arguments(parser, seeds=3, steps=150, output='shapes_preference.json')
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.steps, args.workers = 2, 2, 0
    tower = args.output.with_name('shapes_tower_quick' if args.quick else 'shapes_tower')
    if not tower.exists():
        pretrain_tower(*((2,) if args.quick else ()))[0].save_pretrained(tower)
    sizes = dict(num_train=64, num_test=20) if args.quick else dict(num_train=16000, num_test=1000)
    runs = run_missing(run, list(ARMS), args, dict(steps=args.steps, tower=str(tower), **sizes))
    columns = dict(
        accuracy='flipped: accuracy %',
        logp_gap='gap of log p',
        f1='yes/no F1 %',
        calibration_error='ECE %',
        accuracy_unseen='unseen pairs: accuracy %',
        accuracy_same='same prior: accuracy %',
    )
    print(paired_table(runs, list(ARMS), args.seeds, columns, 'SFT'))
    return runs


if __name__ == '__main__':
    main()
