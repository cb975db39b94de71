"""Does mixing help? Five studies of a tiny SPHINX on drawn shapes: embeddings of two encoders that need each other,
views of small things, tasks with and without instructions, weights of two specialists, and a language model that is
frozen or not.

The encoders are trained once, kept beside --output and shared by all arms. So are the language models of the last
study, one for each seed. The arms of one seed share weights and order and take equally many steps, so that differences
are paired. Every finished run is written to --output at once. A benchmark that is started again skips these runs.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from lib.runs import Runs, add_run_arguments, mean_and_deviation, paired_table, run_missing
from lib.sphinx import (
    build_tuner,
    encode_mix,
    encode_test,
    evaluate,
    language_model_path,
    load_config,
    load_language_model,
    pretrain_encoders,
    pretrain_language_model,
    train,
)

from mergemix_mm.functional import mix_weights
from mergemix_mm.toy.scenes import shapes_facts
from mergemix_mm.utils.tables import markdown_table

TEST_SEED = 2  # Settings were chosen on the images of seed 1.
BETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
Found = dict[str, float]


class Sizes(NamedTuple):
    """Gradient steps of a run, and records of a task in training and in the test."""

    steps: int
    num_train: int
    num_test: int


class Study(NamedTuple):
    """One question: a function of arm, seed, sizes and folder; its share of --steps; its arms; the table."""

    run: Callable[[dict, int, Sizes, Path], Found]
    steps: float
    arms: dict[str, dict]
    columns: dict[str, str]
    reference: str


def embeddings(options: dict, seed: int, sizes: Sizes, folder: Path) -> Found:
    """Questions about colour and shape, for each encoder and for both."""
    tuner = build_tuner(folder, seed, **options)
    train(tuner, encode_mix((('color', 1), ('shape', 1)), sizes.num_train), sizes.steps, seed)
    found = evaluate(tuner, 'color', sizes.num_test, TEST_SEED) | evaluate(tuner, 'shape', sizes.num_test, TEST_SEED)
    return dict(accuracy=(found['color'] + found['shape']) / 2, **found)


def views(options: dict, seed: int, sizes: Sizes, folder: Path) -> Found:
    """Small things, with the whole image only or with its crops as well."""
    tuner = build_tuner(folder, seed, **options)
    mix = encode_mix((('vqa', 1), ('grounding', 1)), sizes.num_train, small=True, **options)
    train(tuner, mix, sizes.steps, seed)
    found = {}
    for task in ('vqa', 'grounding'):
        found |= evaluate(tuner, task, sizes.num_test, TEST_SEED, small=True, **options)
    prompt = encode_test('vqa', sizes.num_test, TEST_SEED, small=True, **options)[0]['input_ids'][0]
    return dict(**found, tokens=int((prompt >= load_config().model.vlm.image_token_id).sum()))


def tasks(options: dict, seed: int, sizes: Sizes, folder: Path) -> Found:
    """Five tasks at once, with prompts that name the task or do not."""
    tuner, names = build_tuner(folder, seed), ('vqa', 'grounding', 'detection', 'caption', 'grounded_caption')
    mix = encode_mix(tuple((name, 1) for name in names), sizes.num_train, **options)
    train(tuner, mix, sizes.steps, seed)
    found = {}
    for name in names:
        found |= evaluate(tuner, name, sizes.num_test, TEST_SEED, **options)
    return found


def weights(options: dict, seed: int, sizes: Sizes, folder: Path) -> Found:
    """Two specialists that branch from one start, their mixes, and a model that learns both; ``beta/task`` for each."""
    start = build_tuner(folder, seed)
    train(start, encode_mix((('color', 1), ('shape', 1)), sizes.num_train), sizes.steps, seed)
    branches = {}
    for name, mix in dict(color=(('color', 1),), shape=(('shape', 1),), both=(('color', 1), ('shape', 1))).items():
        tuner = build_tuner(folder, seed)
        tuner.load_state_dict(start.state_dict())
        train(tuner, encode_mix(mix, sizes.num_train), sizes.steps, seed + 1)
        branches[name] = tuner.state_dict()
    models = dict(start=start.state_dict(), both=branches['both'])
    models |= {f'beta {beta}': mix_weights(branches['color'], branches['shape'], beta) for beta in BETAS}
    # The tests use another model, because the state dicts share memory with the trained ones.
    tested, found = build_tuner(folder, seed), {}
    for name, state in models.items():
        tested.load_state_dict(state)
        for task in ('color', 'shape'):
            found[f'{name}/{task}'] = evaluate(tested, task, sizes.num_test, TEST_SEED)[task]
    return found


def unfreezing(options: dict, seed: int, sizes: Sizes, folder: Path) -> Found:
    """A language model that knows facts learns to see, frozen or not, and with or without texts on these facts."""
    tuner = build_tuner(folder, seed, trainable=options['trainable'])
    load_language_model(tuner, folder, seed)
    before = evaluate(tuner, 'text_only', len(shapes_facts()), TEST_SEED)['text_only']
    mix = (('vqa', 3), ('text_only', 1)) if options['text'] else (('vqa', 1),)
    train(tuner, encode_mix(mix, sizes.num_train), sizes.steps, seed)
    after = evaluate(tuner, 'text_only', len(shapes_facts()), TEST_SEED)
    return dict(before=before, **after, **evaluate(tuner, 'vqa', sizes.num_test, TEST_SEED))


STUDIES = dict(
    embeddings=Study(
        embeddings,
        0.25,
        {
            'grey alone': dict(encoders=('grey',)),
            'colour alone': dict(encoders=('colour',)),
            'both, concat': {},
            'both, mlp': dict(fuse='mlp'),
        },
        dict(accuracy='accuracy %', color='"what colour" %', shape='"what shape" %'),
        'both, concat',
    ),
    views=Study(
        views,
        1,
        {'1 view': dict(views=1), '1 + 2 x 2 views': dict(views=2)},
        {
            'vqa': 'VQA %',
            'grounding': 'grounding: IoU >= 0.5 %',
            'grounding/mean_iou': 'mean IoU %',
            'tokens': 'tokens per image',
        },
        '1 view',
    ),
    tasks=Study(
        tasks,
        1,
        {'instructions': {}, 'bare questions': dict(instructed=False)},
        dict(
            vqa='VQA %',
            grounding='grounding %',
            detection='detection mAP50 %',
            caption='caption ANLS %',
            grounded_caption='grounded caption ANLS %',
        ),
        'instructions',
    ),
    weights=Study(weights, 0.25, {'specialists': {}}, {}, ''),
    unfreezing=Study(
        unfreezing,
        0.5,
        {
            'frozen': dict(trainable=('projector',), text=False),
            'unfrozen': dict(trainable=('projector', 'language_model'), text=False),
            'unfrozen, with text': dict(trainable=('projector', 'language_model'), text=True),
        },
        dict(text_only='text-only: nats / token', before='before', vqa='VQA %'),
        'frozen',
    ),
)


def run(arm: str, seed: int, folder: str, **sizes: int) -> Found:
    """Train and test one arm, named ``study: arm``, with one seed.

    Returns:
        dict: The numbers of the study, and ``seconds``.
    """
    torch.set_num_threads(1)
    name, _, arm = arm.partition(': ')
    study, start = STUDIES[name], time.perf_counter()
    sizes = Sizes(**sizes)
    sizes = sizes._replace(steps=max(int(study.steps * sizes.steps), 1))
    found = study.run(study.arms[arm], seed, sizes, Path(folder))
    return dict(**found, seconds=time.perf_counter() - start)


def pretrain(folder: Path, args: argparse.Namespace) -> None:
    """Train the parts that the arms share, unless they exist."""
    torch.set_num_threads(1)
    if not folder.exists():
        pretrain_encoders(folder, **dict(steps=2, num_images=8) if args.quick else dict(steps=800))
    for seed in range(args.seeds) if 'unfreezing' in args.study else ():
        if not language_model_path(folder, seed).exists():
            pretrain_language_model(folder, args.steps, seed)


def table(name: str, runs: Runs, seeds: int) -> str:
    """The table of a study."""
    study = STUDIES[name]
    if not study.columns:
        return weight_table(runs, name, seeds)
    own = {key.removeprefix(f'{name}: '): found for key, found in runs.items() if key.startswith(f'{name}: ')}
    return paired_table(own, list(study.arms), seeds, study.columns, study.reference)


def weight_table(runs: Runs, name: str, seeds: int) -> str:
    """The table of the study of weights, with a row for each branch and each mix."""
    own = [runs[f'{name}: {arm}/{seed}'] for arm in STUDIES[name].arms for seed in range(seeds)]
    models = list(dict.fromkeys(key.rpartition('/')[0] for key in own[0] if '/' in key))
    lines = []
    for model in models:
        color, shape = ([found[f'{model}/{kind}'] for found in own] for kind in ('color', 'shape'))
        mean = [(a + b) / 2 for a, b in zip(color, shape, strict=True)]
        lines.append([model, *(mean_and_deviation(values) for values in (color, shape, mean))])
    return markdown_table(('weights', '"what colour" %', '"what shape" %', 'mean %'), lines)


def main(argv: list[str] | None = None) -> Runs:
    """Pre-train what is missing, run what is missing, and print a table for each study."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_arguments(parser, seeds=3, steps=600, output='shapes_sphinx.json')
    parser.add_argument(
        '--study', nargs='+', choices=STUDIES, default=list(STUDIES), help='the studies to run (default: all)'
    )
    args = parser.parse_args(argv)
    sizes = Sizes(args.steps, num_train=5000, num_test=400)
    if args.quick:
        args.seeds, args.workers, args.steps = 2, 0, 2
        sizes = Sizes(args.steps, num_train=16, num_test=4)
    folder = args.output.with_name(f'{args.output.stem}_parts{"_quick" if args.quick else ""}')
    pretrain(folder, args)
    arms = [f'{name}: {arm}' for name in args.study for arm in STUDIES[name].arms]
    runs = run_missing(run, arms, args, dict(folder=str(folder), **sizes._asdict()))
    for name in args.study:
        print(f'\n{name}\n\n{table(name, runs, args.seeds)}')
    return runs


if __name__ == '__main__':
    main()
