"""Steps of full-size models with random weights on one GPU, against the loop of transformers: mixed SimPO with LoRA on
a LLaVA-1.5-7B, and AIA on a Janus-Pro-1B.
"""

import argparse
import gc
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from lib.measure import (
    add_common_arguments,
    add_device_arguments,
    interleaved_times,
    median_ratio,
    peak_memory,
    prepare,
    ratio_range,
    write_json,
)
from lib.release_scheme import ForkScoring
from lib.steps import (
    IMAGE,
    SPECIAL_TOKENS,
    TASKS,
    TINY_JANUS,
    TINY_LLAVA,
    build_janus,
    build_llava,
    idle_optimizer,
    janus_step,
    llava_losses,
    on_device,
    plain_janus_losses,
    plain_llava_losses,
    random_conversations,
    random_tasks,
    release_llava_losses,
    small_janus,
    small_llava,
    training_step,
)
from mmengine.config import Config
from torch import Tensor, nn

from mergemix_mm import config_path
from mergemix_mm.engine.planning.released import RELEASED
from mergemix_mm.functional.interaction import BACKENDS
from mergemix_mm.utils.tables import markdown_table

# LoRA, the parts that train, MergeMix and checkpointing come from these configs.
RECIPES = dict(
    llava='simpo/llava-v1.5-7b_8xb16-simpo-mergemix-lora-coslr-1e_llava-mix665k.py',
    janus='aia/janus-pro-1b_8xb16-aia-coslr-1e_llava-mix665k-t2i.py',
)
# The released sizes. Ids of special tokens are those of the small models, because they do not change the cost.
SIZES = dict(
    llava=RELEASED['llava-hf/llava-1.5-7b-hf'] | dict(image_token_index=IMAGE),
    janus=RELEASED['deepseek-community/Janus-Pro-1B']
    | dict(
        image_token_id=IMAGE,
        text_config=RELEASED['deepseek-community/Janus-Pro-1B']['text_config'] | SPECIAL_TOKENS,
    ),
)
TINY = dict(llava=small_llava(**TINY_LLAVA), janus=small_janus(**TINY_JANUS))
LIBRARY, SFT, NTP = "transformers' loop", 'SFT', 'next tokens alone'
# Relative tolerances of losses, and of norms of gradients, that two arms must agree on.
TOLERANCE = dict(float32=(1e-4, 1e-3), bfloat16=(1e-2, 5e-2), float16=(1e-2, 5e-2))
GIB = 2**30


@dataclass
class Group:
    """Steps that are compared with each other.

    Args:
        model (str): The name of the model.
        batch (str): The kind of the batch.
        arms (dict[str, Callable]): The steps by name, first that of transformers' loop. Each returns its losses.
        tuner (nn.Module): Owns the weights that all arms train.
        tokens (int): The number of tokens in the batch.
        same (tuple[str, ...]): Names of losses that must be equal in all arms that have them.
    """

    model: str
    batch: str
    arms: dict[str, Callable[[], dict[str, Tensor]]]
    tuner: nn.Module
    tokens: int
    same: tuple[str, ...]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The arms share one model, whose weights do not change (learning rate 0), and take turns. Each step is '
        "compared with the step of transformers' loop in the same round. A step is mixing, forward passes, backward "
        'pass and AdamW update, with gradient checkpointing. Tokens are those of the batch with image tokens, each '
        'counted once. In all arms, frozen weights have --dtype, and weights that train are float32 under autocast.',
    )
    parser.add_argument('--models', nargs='+', choices=RECIPES, default=list(RECIPES), help='(default: both)')
    parser.add_argument('--batch-size', type=int, default=8, help='(default: %(default)s)')
    parser.add_argument('--prompt', type=int, default=40, help='prompt tokens (default: %(default)s)')
    parser.add_argument('--answer', type=int, default=60, help='answer tokens (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='steps per arm (default: %(default)s)')
    add_common_arguments(parser)
    add_device_arguments(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.batch_size, args.prompt, args.answer, args.rounds = 2, 4, 4, 1
    elif args.device.type == 'cpu':
        parser.error('--device cpu needs --quick: the sizes are those of a GPU')
    if args.batch_size < 2:
        parser.error(f'--batch-size {args.batch_size} must be at least 2: an image is mixed with another one')
    return args


def recipe(name: str, args: argparse.Namespace) -> dict:
    """The config of the tuner of a recipe, with random weights."""
    model = Config.fromfile(config_path(RECIPES[name])).model.to_dict()
    del model['vlm']['pretrained'], model['processor']
    config = (TINY if args.quick else SIZES)[name]
    model['vlm'] |= dict(config=config, dtype=args.dtype)
    return model


def llava_groups(args: argparse.Namespace) -> Iterator[Group]:
    """Supervised and preference tuning of a LLaVA with LoRA."""
    model = recipe('llava', args)
    config, mixer = model['vlm']['config'], model['mixer']
    if args.quick:
        del mixer['num_merge']  # The number is for 576 patches; a tiny tower has fewer.
    # Weights are drawn on the device, so that they do not pass through the memory of the host.
    with args.device:
        sft = build_llava(model['vlm'])
    sft.to(args.device)
    batch = on_device(random_conversations(config, args.batch_size, args.prompt, args.answer), args.device)
    mergemix, swap = (build_llava(sft.vlm, one) for one in (mixer, dict(type='SwapImages')))
    detached = build_llava(sft.vlm, mixer, detach_loser=True)
    release = build_llava(sft.vlm, ForkScoring(num_merge=mixer.get('num_merge')))
    check_losers(mergemix, batch)
    losses = {
        LIBRARY: partial(plain_llava_losses, sft),
        SFT: partial(llava_losses, sft),
        'SFT + SimPO, MergeMix': partial(llava_losses, mergemix),
        'SFT + SimPO, swap': partial(llava_losses, swap),
        'SFT + SimPO, MergeMix, detach_loser=True': partial(llava_losses, detached),
        'scheme of the release, MergeMix': partial(release_llava_losses, release),
    }
    optimizer = idle_optimizer(sft)
    arms = {name: training_step(partial(function, batch), optimizer) for name, function in losses.items()}
    yield Group('LLaVA-1.5-7B, LoRA', 'conversations', arms, sft, batch['input_ids'].numel(), ('loss_sft',))


def check_losers(tuner: nn.Module, batch: dict) -> None:
    """Check that winners and losers differ.

    Raises:
        RuntimeError: If a mixed image equals the clean one.
    """
    mix = tuner.mix(batch)
    if any(torch.equal(*pair) for pair in zip(mix.images, mix.clean, strict=True)):
        raise RuntimeError('MergeMix left images as they were: winner and loser would be the same')


def janus_groups(args: argparse.Namespace) -> Iterator[Group]:
    """Alignment of a Janus that trains except for its tower: generation, then understanding."""
    model = recipe('janus', args)
    config = model['vlm']['config']
    with args.device:
        tuner = build_janus(model['vlm'])
    tuner.to(args.device)
    optimizer = idle_optimizer(tuner)
    length = config['vision_config']['num_image_tokens'] + args.prompt + args.answer
    for task, batch in random_tasks(config, args.batch_size, length, args.answer).items():
        batch = on_device(batch, args.device)
        arms = {LIBRARY: training_step(partial(plain_janus_losses, tuner, batch), optimizer)}
        backends = {NTP: None} | {
            f'AIA, {one}': one for one in BACKENDS if one != 'auto'
        }  # 'auto' is one of the others.
        arms |= {name: janus_step(tuner, batch, optimizer, backend) for name, backend in backends.items()}
        same = (f'loss_ntp_{task}', f'loss_aia_{task}')
        yield Group('Janus-Pro-1B, all weights', TASKS[task], arms, tuner, args.batch_size * length, same)


def first_steps(group: Group, args: argparse.Namespace) -> list[dict]:
    """Take a step of each arm: losses, norm of the gradients and peak memory (GiB), or the error."""
    rows = []
    for name, arm in group.arms.items():
        row = dict(model=group.model, batch=group.batch, arm=name, tokens=group.tokens)
        try:
            row |= _first_step(arm, group.tuner, args)
        except Exception as error:
            # An arm that fails, or that needs too much memory, must not end the others.
            row['error'] = f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
            group.tuner.alignment = None
        rows.append(row)
        release_memory(args.device)
    return rows


def _first_step(arm: Callable[[], dict[str, Tensor]], tuner: nn.Module, args: argparse.Namespace) -> dict:
    torch.manual_seed(args.seed)  # All arms get the same dropout.
    losses = {}
    above = peak_memory(lambda: losses.update(arm()), args.device) / 2**10
    peak = torch.cuda.max_memory_allocated(args.device) / GIB if args.device.type == 'cuda' else None
    norm = nn.utils.get_total_norm([p.grad for p in tuner.parameters() if p.grad is not None])
    found = {key: value.item() for key, value in losses.items()}
    return dict(losses=found, gradient_norm=norm.item(), above_gib=above, peak_gib=peak)


def release_memory(device: torch.device) -> None:
    """Release memory that is not used any more."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()


def problems_of(group: Group, rows: Sequence[dict], dtype: str) -> list[str]:
    """The problems of the first steps of a group: errors, numbers that are not finite or do not agree."""
    loss_tolerance, norm_tolerance = TOLERANCE[dtype]
    problems, found = [], {}
    for row in rows:
        name = f'{row["model"]}, {row["batch"]}, {row["arm"]}'
        if 'error' in row:
            problems.append(f'{name}: {row["error"]}')
            continue
        if not all(map(math.isfinite, row['losses'].values())) or not 0 < row['gradient_norm'] < math.inf:
            problems.append(f'{name}: losses {row["losses"]}, norm of the gradients {row["gradient_norm"]}')
        values = {key: (row['losses'][key], loss_tolerance) for key in group.same if key in row['losses']}
        if row['arm'] in (LIBRARY, SFT, NTP):
            values['norm of the gradients'] = row['gradient_norm'], norm_tolerance
        for key, (value, tolerance) in values.items():
            other, expected = found.setdefault(key, (row['arm'], value))
            if not math.isclose(value, expected, rel_tol=tolerance):
                problems.append(f'{name}: {key} is {value}, that of {other} {expected}')
    return problems


def measure(group: Group, args: argparse.Namespace, keep: Callable[[list[dict], list[str]], None]) -> None:
    """Check the arms of a group and time those that run. ``keep`` gets the rows after each of the two."""
    rows = first_steps(group, args)
    problems = problems_of(group, rows, args.dtype)
    keep(rows, problems)
    runs = {row['arm']: group.arms[row['arm']] for row in rows if 'error' not in row}
    if not runs:
        return
    times = interleaved_times(runs, args.rounds, warmup=0, device=args.device)
    for row in rows:
        seconds = times.get(row['arm'])
        if seconds is None:
            continue
        row |= dict(times=seconds, tokens_per_second=group.tokens / statistics.median(seconds))
        if LIBRARY in times:
            row['ratio'] = median_ratio(seconds, times[LIBRARY])
            row['ratio_range'] = ratio_range(seconds, times[LIBRARY])
    keep(rows, problems)


def table(rows: Sequence[dict]) -> str:
    """A line for each arm, against transformers' loop on the same batch."""
    header = ('model', 'batch', 'step', 'tokens/s', f'time / {LIBRARY}', 'range', 'peak (GiB)', 'above weights (GiB)')
    return markdown_table(header, [[row['model'], row['batch'], row['arm'], *_cells(row)] for row in rows])


def _cells(row: dict) -> list[str | None]:
    low, high = row.get('ratio_range', (None, None))
    numbers = [
        (row.get('tokens_per_second'), '.0f'),
        (row.get('ratio'), '.2f'),
        (row.get('peak_gib'), '.1f'),
        (row.get('above_gib'), '.1f'),
    ]
    speed, ratio, peak, above = (None if number is None else format(number, spec) for number, spec in numbers)
    return [speed, ratio, None if low is None else f'{low:.2f} - {high:.2f}', peak, above]


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure all arms of both models and print each group when it is done."""
    args = parse_args(argv)
    prepare(args)
    results = dict(benchmark='large_steps', options=vars(args), rows=[], problems=[])
    groups = dict(llava=llava_groups, janus=janus_groups)
    for name in args.models:
        for group in groups[name](args):
            before = dict(results)

            def keep(rows: list[dict], problems: list[str], before: dict = before) -> None:
                results.update(rows=before['rows'] + rows, problems=before['problems'] + problems)
                if args.output:
                    write_json(args.output, results)

            measure(group, args, keep)
            print(table(results['rows'][len(before['rows']) :]), flush=True)
            del group
        release_memory(args.device)
    if results['problems']:
        raise SystemExit('\n'.join(['These arms are wrong:', *results['problems']]))
    return results


if __name__ == '__main__':
    main()
