"""Cost of one preference-tuning step of a small LLaVA, in time and memory, against supervised fine-tuning alone."""

import argparse
from collections.abc import Callable, Sequence

import torch
from _measure import add_common_arguments, markdown_table, measure_arms, prepare, ratio_cells, write_json
from mmengine.registry import MODELS
from release_scheme import ReleaseScheme
from torch import Tensor

from mergemix_mm.functional import simpo_loss
from mergemix_mm.models import VLMTuner

SFT = 'SFT'
IMAGE_TOKEN = 1
MIXERS = {
    'MergeMix': dict(type='MergeMix'),
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
        'forwards, backward and AdamW update; tower frozen, projector and language model train. Memory is that of '
        'torch tensors, above weights, gradients and optimizer state.',
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
    args = parser.parse_args(argv)
    if args.quick:
        args.image_size, args.prompt, args.answer, args.vocabulary, args.width = 32, 4, 4, 50, 32
        args.tower_layers, args.text_layers, args.rounds = 4, 2, 1
    if args.batch_size < 2:
        parser.error(f'--batch-size {args.batch_size} must be at least 2: an image is mixed with another one')
    return args


def build_tuner(args: argparse.Namespace, mixer: dict | None) -> VLMTuner:
    """A small LLaVA with random weights, the same in all arms."""
    torch.manual_seed(args.seed)
    common = dict(hidden_size=args.width, intermediate_size=4 * args.width, num_attention_heads=args.width // 16)
    config = dict(
        model_type='llava',
        vision_config=dict(
            model_type='clip_vision_model',
            image_size=args.image_size,
            patch_size=16,
            num_hidden_layers=args.tower_layers,
            **common,
        ),
        text_config=dict(
            model_type='llama',
            vocab_size=args.vocabulary,
            num_hidden_layers=args.text_layers,
            tie_word_embeddings=False,
            **common,
        ),
        image_token_index=IMAGE_TOKEN,
    )
    head = dict(type='SFTHead' if mixer is None else 'SimPOHead')
    vlm = dict(type='HFVisionLanguageModel', config=config)
    return MODELS.build(dict(type='VLMTuner', vlm=vlm, head=head, mixer=mixer))


def random_batch(args: argparse.Namespace) -> dict[str, Tensor]:
    """Image, prompt and answer of each sample, all of equal length."""
    image = torch.full((args.batch_size, (args.image_size // 16) ** 2), IMAGE_TOKEN)
    text = torch.randint(2, args.vocabulary, (args.batch_size, args.prompt + args.answer))
    ids = torch.cat([image, text], dim=1)
    labels = ids.clone()
    labels[:, : -args.answer] = -100
    pixels = torch.randn(args.batch_size, 3, args.image_size, args.image_size)
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, pixel_values=pixels)


def tuner_loss(tuner: VLMTuner, batch: dict) -> Tensor:
    """The loss as MMEngine sums it."""
    return tuner.parse_losses(tuner.loss(batch))[0]


def release_loss(tuner: VLMTuner, batch: dict) -> Tensor:
    """As the release trains: three full forwards with all logits, the loser without gradient, lengths with padding."""
    model, labels = tuner.vlm.model, batch['labels']
    inputs = {key: value for key, value in batch.items() if key != 'labels'}
    sft = model(**batch).loss
    result = tuner.mix(batch)
    won = _mean_logps(model(**inputs).logits, labels)
    with torch.no_grad():
        lost = _mean_logps(model(**inputs | dict(pixel_values=torch.stack(result.images))).logits, labels)
    return (sft + simpo_loss(won, lost, beta=1.0, margin=float(1 - result.ratio[0])).mean()) / 2


def _mean_logps(logits: Tensor, labels: Tensor) -> Tensor:
    logps = logits.float().log_softmax(dim=-1).gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
    return (logps * (labels != -100)).sum(dim=1) / labels.size(1)


def build_arm(args: argparse.Namespace, batch: dict, mixer: dict | None, loss: Callable) -> Callable[[], None]:
    """One training step, called again and again."""
    tuner = build_tuner(args, mixer).train()
    if loss is release_loss:
        tuner.mixer = ReleaseScheme()
    optimizer = torch.optim.AdamW([p for p in tuner.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        loss(tuner, batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # Gradients stay allocated, as they are not what the arms differ in.

    return step


def main() -> None:
    """Measure all arms, and print them against SFT."""
    args = parse_args()
    prepare(args)
    batch = random_batch(args)
    arms = {SFT: build_arm(args, batch, None, tuner_loss)}
    arms |= {f'SFT + SimPO, {name}': build_arm(args, batch, mixer, tuner_loss) for name, mixer in MIXERS.items()}
    arms['scheme of the release, MergeMix'] = build_arm(args, batch, MIXERS['MergeMix'], release_loss)
    measured = measure_arms(arms, args.rounds)
    times, memory = measured['times'], measured['memory']
    rows = [(name, *ratio_cells(times[name], times[SFT]), f'{memory[name]:.0f}') for name in arms]
    print(markdown_table(('step', 'time / SFT', 'range over the rounds', 'memory (MB)'), rows))
    if args.output:
        write_json(args.output, dict(benchmark='tuning_step', options=vars(args), **measured))


if __name__ == '__main__':
    main()
