"""A training step of this package against those of transformers' Trainer and of trl, in one run."""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from lib import lengths
from lib.measure import add_clock_argument, add_common_arguments, measure_arms, prepare, ratio_cells, write_json
from lib.peers import (
    simpo_batch,
    simpo_head_loss,
    trainer_step,
    transformers_trainer,
    trl_sft_trainer,
    trl_simpo_trainer,
)
from lib.steps import IMAGE, PATCH, TINY_LLAVA, Batch, build_llava, idle_optimizer, random_conversations, small_llava
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from torch import Tensor

from mergemix_mm.functional import answer_logps
from mergemix_mm.functional.preference import IGNORE_INDEX
from mergemix_mm.models import AnswerScores, VLMTuner
from mergemix_mm.utils.tables import markdown_table

OURS, TRANSFORMERS, TRL = 'mergemix_mm', 'transformers', 'trl'
PEERS = TRANSFORMERS, TRL
PARTS = 'sft', 'lengths', 'pairs', 'head'
# Parts that only trl has.
PAIRS = 'pairs', 'head'
SIMPO = dict(type='SimPOHead', beta=2.0, margin=1.0, sft_weight=1.0)

Arms = Mapping[str, Callable[[], Tensor]]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='sft: batches of equal lengths. lengths: conversations of drawn lengths, padded. pairs: SimPO on given '
        'pairs of answers; trl has it for texts only. head: the same from the last hidden states on. The arms share '
        'model, records, AdamW and float32, and take turns. A step is forward, backward and update. The tower is '
        'frozen; projector and language model train. Before it is timed, the losses of the arms are compared. Memory '
        'is that of torch tensors, above weights and optimizer states.',
    )
    parser.add_argument('--parts', nargs='+', choices=PARTS, help='(default: all that --peers have)')
    parser.add_argument('--peers', nargs='+', choices=PEERS, default=list(PEERS), help='(default: both)')
    parser.add_argument('--batch-size', type=int, default=4, help='(default: %(default)s)')
    parser.add_argument('--image-size', type=int, default=224, help='in pixels, patches of 16 (default: %(default)s)')
    parser.add_argument('--prompt', type=int, default=244, help='prompt tokens (default: %(default)s)')
    parser.add_argument('--answer', type=int, default=60, help='answer tokens (default: %(default)s)')
    parser.add_argument('--samples', type=int, default=48, help='of the part lengths (default: %(default)s)')
    parser.add_argument('--length-batch-size', type=int, default=8, help='of that part (default: %(default)s)')
    parser.add_argument('--vocabulary', type=int, default=32000, help='(default: %(default)s)')
    parser.add_argument('--width', type=int, default=384, help='of tower and language model (default: %(default)s)')
    parser.add_argument('--tower-layers', type=int, default=12, help='(default: %(default)s)')
    parser.add_argument('--text-layers', type=int, default=8, help='(default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=5, help='(default: %(default)s)')
    lengths.add_length_arguments(parser)
    # The image has 196 tokens instead of 576, and the texts are shorter in proportion.
    parser.set_defaults(image_tokens=None, median=136, longest=680)
    add_common_arguments(parser)
    add_clock_argument(parser)
    args = parser.parse_args(argv)
    if args.quick:
        vars(args).update(
            TINY_LLAVA,
            median=8,
            longest=40,
            batch_size=2,
            prompt=8,
            answer=4,
            samples=12,
            length_batch_size=3,
            rounds=1,
        )
    image_tokens = (args.image_size // PATCH) ** 2
    if args.image_tokens not in (None, image_tokens):
        parser.error(f'--image-tokens {args.image_tokens}: an image of {args.image_size} pixels has {image_tokens}')
    args.image_tokens = image_tokens
    if TRL in args.peers and find_spec('trl') is None:
        parser.error("--peers trl: trl is not installed; pip install -e '.[trl]', or take --peers transformers")
    if args.parts is None:
        args.parts = [part for part in PARTS if TRL in args.peers or part not in PAIRS]
    missing = [part for part in args.parts if part in PAIRS and TRL not in args.peers]
    if missing:
        parser.error(f'--parts {missing[0]} compares with trl only: add trl to --peers')
    return args


def own_step(tuner: VLMTuner, optimizer: torch.optim.Optimizer) -> Callable[[Batch], Tensor]:
    """A step on a batch, as MMEngine's loops call it; returns the loss."""
    wrapper = OptimWrapper(optimizer)
    return lambda batch: tuner.train_step(dict(inputs=dict(batch)), wrapper)['loss']


def epoch(step: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> Callable[[], Tensor]:
    """A step on each batch; returns the mean of the loss over all answer tokens, which no order changes."""
    answers = torch.tensor([float((batch['labels'][:, 1:] != IGNORE_INDEX).sum()) for batch in batches])
    shares = answers / answers.sum()
    return lambda: sum(step(batch).detach() * share for batch, share in zip(batches, shares, strict=True))


def check_losses(arms: Arms) -> None:
    """Stop if the arms do not compute one loss."""
    losses = {name: arm().detach().float() for name, arm in arms.items()}
    first, *others = losses
    for name in others:
        close = torch.allclose(losses[name], losses[first], rtol=1e-3, atol=1e-4)
        if not close:
            raise AssertionError(f'loss of {name}: {losses[name].item():.6f}, of {first}: {losses[first].item():.6f}')


def measure(args: argparse.Namespace, arms: Arms, tokens: int, work: Mapping[str, float] | None = None) -> dict:
    """Compare the losses of the arms, time them and print a table. Ratios compare with the first arm.

    Args:
        args (argparse.Namespace): The command line.
        arms (Mapping[str, Callable]): By name.
        tokens (int): Useful ones of a call.
        work (Mapping[str, float], optional): Computed tokens per useful one, by name. Defaults to None.

    Returns:
        dict: ``times`` (s) and ``memory`` (MB) of the arms by name, and what was given.
    """
    check_losses(arms)  # Which warms up.
    measured = measure_arms(arms, args.rounds, clock=args.clock, warmup=0) | dict(tokens=tokens, work=dict(work or {}))
    times, memory = measured['times'], measured['memory']
    first = next(iter(arms))
    rows = []
    for name in arms:
        cells = [f'{work[name]:.2f}'] if work else []
        cells += [f'{tokens / statistics.median(times[name]):,.0f}', *ratio_cells(times[name], times[first])]
        rows.append((name, *cells, f'{memory[name]:,.1f}', f'{memory[name] / memory[first]:.2f}'))
    header = [
        'arm',
        *(['tokens / useful'] if work else []),
        'useful tokens / s',
        'time / first',
        'range over the rounds',
    ]
    print(markdown_table((*header, 'memory (MB)', '/ first'), rows), end='\n\n')
    return measured


class Comparison:
    """The model, the optimizer and the trainers that the parts share.

    Args:
        args (argparse.Namespace): The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.config = small_llava(**{key: getattr(args, key) for key in TINY_LLAVA})
        self.sft = build_llava(dict(type='HFVisionLanguageModel', config=self.config))
        self.model = self.sft.vlm.model
        self.optimizer = idle_optimizer(self.sft)
        self.optimizer.zero_grad()

    def sft_steps(self) -> dict[str, Callable[[Batch], Tensor]]:
        """A step of supervised fine-tuning of each library."""
        trainers = {TRANSFORMERS: transformers_trainer, TRL: trl_sft_trainer}
        peers = {peer: trainers[peer](self.model, self.optimizer) for peer in self.args.peers}
        own = {OURS: own_step(self.sft, self.optimizer)}
        return own | {peer: trainer_step(trainer, self.optimizer) for peer, trainer in peers.items()}

    def part_sft(self) -> dict:
        """Batches of equal lengths: image, prompt and answer."""
        args = self.args
        batches = [random_conversations(self.config, args.batch_size, args.prompt, args.answer)]
        return measure(args, {name: epoch(step, batches) for name, step in self.sft_steps().items()}, useful(batches))

    def part_lengths(self) -> dict:
        """Conversations of drawn lengths as they come, and sorted by length; the same ones in all arms."""
        args = self.args
        samples = lengths.random_samples(self.config, lengths.draw_records(args.samples, args))
        batches = {
            order: lengths.to_batches(samples, args.length_batch_size, order == 'grouped')
            for order in ('grouped', 'random')
        }
        packed = build_llava(dict(type='HFVisionLanguageModel', config=self.config, packed=True))
        packed.load_state_dict(self.sft.state_dict())
        # A packed batch is computed without its padding, in any order.
        arms = {f'{OURS}, packed': epoch(own_step(packed, idle_optimizer(packed)), batches['random'])}
        work = {f'{OURS}, packed': 1.0}
        for name, step in self.sft_steps().items():
            for order, padded in batches.items():
                arms[f'{name}, {order}'] = epoch(step, padded)
                work[f'{name}, {order}'] = lengths.tokens_per_useful_token(padded)
        return measure(args, arms, useful(batches['random']), work)

    def part_pairs(self) -> dict:
        """SimPO on pairs of given answers, of texts only."""
        chosen, rejected = self.texts()
        tuner = MODELS.build(dict(type='VLMTuner', vlm=self.sft.vlm, head=SIMPO)).train()
        trainer = trainer_step(self.simpo_trainer(), self.optimizer)
        arms = {
            OURS: partial(own_step(tuner, self.optimizer), chosen | dict(rejected=rejected)),
            TRL: partial(trainer, simpo_batch(chosen, rejected)),
        }
        return measure(self.args, arms, useful([chosen, rejected]))

    def part_head(self) -> dict:
        """The same from the last hidden states of the pairs to the gradients of these states and of the head."""
        chosen, rejected = self.texts()
        trainer, weight = self.simpo_trainer(), self.model.lm_head.weight
        pairs, head = simpo_batch(chosen, rejected), MODELS.build(SIMPO)
        hidden = torch.randn(2 * len(chosen['labels']), chosen['labels'].size(1), weight.size(1), requires_grad=True)
        labels = [one['labels'] for one in (chosen, rejected)]
        valid = torch.ones(len(labels[0]), dtype=torch.bool)

        def own() -> Tensor:
            sums, lengths = (one.chunk(2) for one in answer_logps(hidden.chunk(2), weight, labels))
            won, lost = map(AnswerScores, sums, lengths)
            return sum(value for key, value in head.loss(won, lost, valid=valid).items() if 'loss' in key)

        def backward(loss_of: Callable[[], Tensor]) -> Tensor:
            loss = loss_of()
            loss.backward()
            hidden.grad = weight.grad = None
            return loss.detach()

        peer = partial(simpo_head_loss, trainer, hidden, weight, pairs)
        arms = {OURS: partial(backward, own), TRL: partial(backward, peer)}
        return measure(self.args, arms, useful([chosen, rejected]))

    def texts(self) -> list[Batch]:
        """Chosen and rejected answers to random prompts as long as an image and a prompt are."""
        batches = []
        for _ in range(2):
            batch = random_conversations(self.config, self.args.batch_size, self.args.prompt, self.args.answer)
            del batch['pixel_values']
            ids = batch['input_ids']
            ids[ids == IMAGE] = IMAGE + 1
            batches.append(batch)
        return batches

    def simpo_trainer(self) -> Any:
        """Trl's trainer of pairs."""
        return trl_simpo_trainer(self.model, self.optimizer, SIMPO['beta'], SIMPO['margin'], SIMPO['sft_weight'])


def useful(batches: Sequence[Batch]) -> int:
    """Tokens that are no padding."""
    return int(sum(batch['attention_mask'].sum() for batch in batches))


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    """Measure the parts and print a table of each.

    Returns:
        dict: What :func:`measure` returns, by part.
    """
    args = parse_args(argv)
    prepare(args)
    comparison, results = Comparison(args), {}
    for part in args.parts:
        print(f'{part}\n')
        results[part] = getattr(comparison, f'part_{part}')()
        if args.output:
            write_json(args.output, dict(benchmark='peers', options=vars(args), parts=results))
    return results


if __name__ == '__main__':
    main()
