"""Cost of AIA in a whole training step of a small Janus, in time and memory: with fused intensity, and with attention
maps, against next tokens alone.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from lib.loops import idle_optimizer, training_step
from lib.measure import add_common_arguments, markdown_table, measure_arms, prepare, ratio_cells, write_json
from mmengine.registry import MODELS
from torch import Tensor

from mergemix_mm.models.attention import InteractionAlignment
from mergemix_mm.models.losses import AIALoss
from mergemix_mm.models.tuners import UnifiedTuner

NTP, FUSED, MAPS = 'next tokens alone', 'AIA, fused', 'AIA, attention maps'
TASKS = dict(gen='generation', und='understanding')
BACKENDS = {NTP: None, FUSED: 'fused', MAPS: 'eager'}
PAD, BOS, EOS, IMAGE, BEGIN = range(5)
SPECIAL_TOKENS = dict(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)
PATCH = 16


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The arms take turns, and each step is compared with the one without AIA of the same round. A step is '
        'forward, losses, backward and AdamW update of projector, language model and generation parts; the tower is '
        'frozen, images are codes already, no prompt is dropped. All layers are aligned. Memory is that of torch '
        'tensors, above weights, gradients and optimizer state.',
    )
    parser.add_argument('--batch-size', type=int, default=2, help='(default: %(default)s)')
    parser.add_argument('--image-size', type=int, default=384, help='in pixels, patches of 16 (default: %(default)s)')
    parser.add_argument(
        '--length', type=int, default=1152, help='tokens with those of the image (default: %(default)s)'
    )
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
        args.image_size, args.length, args.answer, args.vocabulary, args.codes = 32, 20, 4, 50, 50
        args.width, args.tower_layers, args.text_layers, args.rounds = 128, 2, 2, 1
    if args.length < num_codes(args) + args.answer + 2:
        parser.error(f'--length {args.length} must hold {num_codes(args)} image tokens, --answer and 2 more')
    return args


def num_codes(args: argparse.Namespace) -> int:
    """Tokens of an image, which is as many to be read as to be written."""
    return (args.image_size // PATCH) ** 2


def small_config(args: argparse.Namespace) -> dict:
    """Config of a small Janus; its VQ model is tiny, as no arm runs it."""
    heads = max(args.width // 64, 2)
    return dict(
        model_type='janus',
        vision_config=dict(
            hidden_size=args.width,
            num_hidden_layers=args.tower_layers,
            num_attention_heads=heads,
            image_size=args.image_size,
            patch_size=PATCH,
            num_image_tokens=num_codes(args),
            projection_dim=args.width,
            depth=2,
        ),
        text_config=dict(
            model_type='llama',
            vocab_size=args.vocabulary,
            hidden_size=args.width,
            intermediate_size=4 * args.width,
            num_hidden_layers=args.text_layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            tie_word_embeddings=False,
            **SPECIAL_TOKENS,
        ),
        vq_config=dict(
            embed_dim=8,
            num_embeddings=args.codes,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            projection_dim=args.width,
            image_token_embed_dim=args.width,
        ),
        image_token_id=IMAGE,
    )


def build_tuner(vlm: dict) -> UnifiedTuner:
    """Both tasks; no prompt is dropped, so that all samples are aligned."""
    return MODELS.build(dict(type='UnifiedTuner', vlm=vlm, drop_prompt=0.0)).train()


def random_batches(config: dict, batch_size: int, length: int, answer: int) -> dict[str, dict]:
    """A batch per task, all sequences of one length: a prompt and an image, or an image, a question and an answer."""
    vision, vocabulary = config['vision_config'], config['text_config']['vocab_size']
    codes = torch.randint(config['vq_config']['num_embeddings'], (batch_size, vision['num_image_tokens']))
    text = torch.randint(BEGIN + 1, vocabulary, (batch_size, length - codes.size(1)))
    prompts = torch.cat([torch.full_like(text[:, :1], BOS), text[:, 2:], torch.full_like(text[:, :1], BEGIN)], dim=1)
    ids = torch.cat([torch.full_like(codes, IMAGE), text], dim=1)
    labels = ids.clone()
    labels[:, :-answer] = -100
    pixels = torch.randn(batch_size, 3, vision['image_size'], vision['image_size'])
    return dict(
        gen=dict(task='gen', input_ids=prompts, attention_mask=torch.ones_like(prompts), codes=codes),
        und=dict(task='und', input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, pixel_values=pixels),
    )


def build_arm(
    tuner: UnifiedTuner, batch: dict, optimizer: torch.optim.Optimizer, backend: str | None
) -> Callable[[], dict[str, Tensor]]:
    """One training step, called again and again; with a backend, all layers are recorded and aligned."""
    step = training_step(partial(tuner, batch, mode='loss'), optimizer)
    if backend is None:
        return step
    alignment = InteractionAlignment(tuner.vlm, AIALoss('janus_pro'), backend=backend)

    def aligned() -> dict[str, Tensor]:
        with alignment.recorder:  # Until the backward has ended, which may compute layers again.
            tuner.alignment = alignment
            losses = step()
            tuner.alignment = None
        return losses

    return aligned


def measure(args: argparse.Namespace, tuner: UnifiedTuner, batch: dict) -> dict[str, dict]:
    """Times (s) and peak memory (MB) of the arms on a batch; the two ways to record must agree."""
    optimizer = idle_optimizer(tuner)
    arms = {name: build_arm(tuner, batch, optimizer, backend) for name, backend in BACKENDS.items()}
    torch.testing.assert_close(arms[FUSED](), arms[MAPS](), rtol=1e-3, atol=1e-5)
    return measure_arms(arms, args.rounds)


def table(measured: dict[str, dict]) -> str:
    """One row per task and arm, against the task's step without AIA."""
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
    config = small_config(args)
    tuner = build_tuner(dict(type='JanusModel', config=config))
    batches = random_batches(config, args.batch_size, args.length, args.answer)
    measured = {task: measure(args, tuner, batch) for task, batch in batches.items()}
    print(table(measured))
    if args.output:
        write_json(args.output, dict(benchmark='aia_step', options=vars(args), results=measured))
    return measured


if __name__ == '__main__':
    main()
