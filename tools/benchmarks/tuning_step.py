"""Cost of one preference-tuning step of a small LLaVA, in time and memory, against supervised fine-tuning alone."""

import argparse
from collections.abc import Sequence
from functools import partial

import torch
from lib.loops import idle_optimizer, training_step
from lib.measure import add_common_arguments, markdown_table, measure_arms, prepare, ratio_cells, write_json
from lib.release_scheme import ReleaseScheme
from mmengine.registry import MODELS
from torch import Tensor, nn

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


def small_config(args: argparse.Namespace) -> dict:
    """Config of a small LLaVA."""
    common = dict(hidden_size=args.width, intermediate_size=4 * args.width, num_attention_heads=args.width // 16)
    return dict(
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


def build_tuner(vlm: dict | nn.Module, mixer: dict | ReleaseScheme | None = None) -> VLMTuner:
    """SFT of a VLM, or SFT with SimPO where there is a mixer."""
    head = dict(type='SFTHead' if mixer is None else 'SimPOHead')
    return MODELS.build(dict(type='VLMTuner', vlm=vlm, head=head, mixer=mixer)).train()


def random_batch(config: dict, batch_size: int, prompt: int, answer: int) -> dict[str, Tensor]:
    """Image, prompt and answer of each sample, all of equal length."""
    size, vocabulary = config['vision_config']['image_size'], config['text_config']['vocab_size']
    image = torch.full((batch_size, (size // config['vision_config']['patch_size']) ** 2), IMAGE_TOKEN)
    text = torch.randint(IMAGE_TOKEN + 1, vocabulary, (batch_size, prompt + answer))
    ids = torch.cat([image, text], dim=1)
    labels = ids.clone()
    labels[:, :-answer] = -100
    pixels = torch.randn(batch_size, 3, size, size)
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, pixel_values=pixels)


def tuner_losses(tuner: VLMTuner, batch: dict) -> dict[str, Tensor]:
    """What MMEngine's loops sum."""
    return tuner(batch, mode='loss')


def transformers_losses(tuner: VLMTuner, batch: dict) -> dict[str, Tensor]:
    """Transformers' own forward with labels, as its users train: logits of all positions."""
    with tuner.vlm.autocast(batch):
        return dict(loss_sft=tuner.vlm.model(**batch).loss)


def release_losses(tuner: VLMTuner, batch: dict) -> dict[str, Tensor]:
    """As the release trains: three full forwards with all logits, the loser without gradient, lengths with padding."""
    model, labels = tuner.vlm.model, batch['labels']
    inputs = {key: value for key, value in batch.items() if key != 'labels'}
    with tuner.vlm.autocast(batch):
        sft = model(**batch).loss
        result = tuner.mix(batch)
        won = _mean_logps(model(**inputs).logits, labels)
        with torch.no_grad():
            lost = _mean_logps(model(**inputs | dict(pixel_values=torch.stack(result.images))).logits, labels)
        simpo = simpo_loss(won, lost, beta=1.0, margin=float(1 - result.ratio[0])).mean()
        return dict(loss=(sft + simpo) / 2)


def _mean_logps(logits: Tensor, labels: Tensor) -> Tensor:
    logps = logits.float().log_softmax(dim=-1).gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
    return (logps * (labels != -100)).sum(dim=1) / labels.size(1)


def main() -> None:
    """Measure all arms, and print them against SFT."""
    args = parse_args()
    prepare(args)
    config = small_config(args)
    batch = random_batch(config, args.batch_size, args.prompt, args.answer)
    sft = build_tuner(dict(type='HFVisionLanguageModel', config=config))
    tuners = {f'SFT + SimPO, {name}': build_tuner(sft.vlm, mixer) for name, mixer in MIXERS.items()}
    losses = {name: partial(tuner_losses, tuner) for name, tuner in ({SFT: sft} | tuners).items()}
    losses['scheme of the release, MergeMix'] = partial(release_losses, build_tuner(sft.vlm, ReleaseScheme()))
    optimizer = idle_optimizer(sft)
    arms = {name: training_step(partial(function, batch), optimizer) for name, function in losses.items()}
    measured = measure_arms(arms, args.rounds)
    times, memory = measured['times'], measured['memory']
    rows = [(name, *ratio_cells(times[name], times[SFT]), f'{memory[name]:.0f}') for name in arms]
    print(markdown_table(('step', 'time / SFT', 'range over the rounds', 'memory (MB)'), rows))
    if args.output:
        write_json(args.output, dict(benchmark='tuning_step', options=vars(args), **measured))


if __name__ == '__main__':
    main()
