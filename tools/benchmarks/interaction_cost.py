"""Time and memory of recording the interaction intensity by each backend, and from attention maps as the AIA release.

It measures one attention layer at several lengths, and a whole language model (forward, losses and backward).
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from lib.measure import add_common_arguments, measure_arms, prepare, ratio_cells, write_json
from torch import Tensor, nn

from mergemix_mm.models.attention import InteractionRecorder
from mergemix_mm.models.losses import AIALoss
from mergemix_mm.utils.tables import markdown_table

PLAIN, FUSED, LSE, MAPS = 'sdpa, not recorded', 'fused intensity', 'log-sum-exp', 'attention maps'
BACKENDS = {FUSED: 'fused', LSE: 'lse'}
VOCABULARY = 1000


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The arms take turns, and each call is compared with the plain one of the same round. Memory is that of '
        'torch tensors, above weights and inputs. The first tokens are the prompt, the others the image.',
    )
    parser.add_argument(
        '--lengths',
        type=int,
        nargs='+',
        default=[576, 1152, 2304, 4608],
        help='tokens of the layer (default: %(default)s)',
    )
    parser.add_argument('--model-length', type=int, default=1152, help='tokens of the model (default: %(default)s)')
    parser.add_argument('--model-layers', type=int, default=8, help='layers of the model (default: %(default)s)')
    parser.add_argument('--prompt', type=int, default=40, help='prompt tokens (default: %(default)s)')
    parser.add_argument('--heads', type=int, default=16, help='heads of width --head-width (default: %(default)s)')
    parser.add_argument('--head-width', type=int, default=64, help='(default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=5, help='calls per arm (default: %(default)s)')
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.lengths, args.model_length, args.model_layers, args.prompt = [16, 32], 32, 2, 4
        args.heads, args.head_width, args.rounds = 2, 8, 1
    if args.prompt >= min(*args.lengths, args.model_length):
        parser.error(f'--prompt {args.prompt} must be shorter than every length')
    return args


def build_model(args: argparse.Namespace, num_layers: int, attention: str) -> nn.Module:
    """A Llama with random weights, the same in all arms."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(args.seed)
    width = args.heads * args.head_width
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=args.heads,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).train()


def spans(args: argparse.Namespace, length: int) -> tuple[Tensor, Tensor]:
    """The masks of the queries (image) and of the keys (prompt), [1, length] bool."""
    prompt = torch.arange(length)[None] < args.prompt
    return ~prompt, prompt


def map_intensity(weights: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """The intensity [B] from an attention map [B, H, L, L], which is sliced as in the release."""
    return weights[:, :, queries[0]][..., keys[0]].sum(dim=-1).mean(dim=(1, 2))


def layer_arm(args: argparse.Namespace, length: int, arm: str) -> Callable[[], Tensor | None]:
    """Forward and backward of one attention layer, with a gradient through output and intensity."""
    model = build_model(args, 1, 'eager' if arm == MAPS else 'sdpa')
    layer, (queries, keys) = model.model.layers[0].self_attn, spans(args, length)
    torch.manual_seed(args.seed)
    states = torch.randn(1, length, args.heads * args.head_width, requires_grad=True)
    rotary = model.model.rotary_emb(states, torch.arange(length)[None])
    recorder = InteractionRecorder(model, backend=BACKENDS.get(arm, 'eager'))
    mask = None
    if arm == MAPS:
        # Eager attention of transformers is causal only by its mask.
        mask = torch.full((1, 1, length, length), torch.finfo(states.dtype).min).triu(1)
    elif arm in BACKENDS:
        recorder.start()

    def step() -> Tensor | None:
        recording = recorder.recording(queries, keys) if arm in BACKENDS else None
        options = recording.attention_kwargs if recording else {}
        output, weights = layer(states, position_embeddings=rotary, attention_mask=mask, **options)
        loss, intensity = output.square().mean(), None
        if arm != PLAIN:
            intensity = recording.intensity()[0] if recording else map_intensity(weights, queries, keys)
            loss = loss + intensity.sum()
        loss.backward()
        # Gradients that stayed would be counted in the next call.
        for tensor in (states, *layer.parameters()):
            tensor.grad = None
        return None if intensity is None else intensity.detach()

    return step


def model_arm(args: argparse.Namespace, arm: str) -> Callable[[], Tensor | None]:
    """Forward, next-token and AIA loss and backward of a language model."""
    model = build_model(args, args.model_layers, 'eager' if arm == MAPS else 'sdpa')
    queries, keys = spans(args, args.model_length)
    torch.manual_seed(args.seed)
    ids = torch.randint(VOCABULARY, (1, args.model_length))
    aia, recorder = AIALoss('janus_pro'), InteractionRecorder(model, backend=BACKENDS.get(arm, 'eager'))
    if arm in BACKENDS:
        recorder.start()

    def step() -> Tensor | None:
        recording = recorder.recording(queries, keys) if arm in BACKENDS else None
        options = recording.attention_kwargs if recording else dict(output_attentions=arm == MAPS)
        output = model(ids, labels=ids, use_cache=False, **options)
        loss, intensity = output.loss, None
        if arm != PLAIN:
            maps = output.attentions
            intensity = (
                recording.intensity() if recording else torch.stack([map_intensity(m, queries, keys) for m in maps])
            )
            loss = loss + aia(intensity, 'gen')
        loss.backward()
        model.zero_grad(set_to_none=True)
        return None if intensity is None else intensity.detach()

    return step


def measure(args: argparse.Namespace, arms: dict[str, Callable[[], Tensor | None]]) -> dict:
    """Times (s) and peak memory (MB) of the arms, which must agree on the intensity."""
    maps = arms[MAPS]()
    for arm in BACKENDS:
        torch.testing.assert_close(arms[arm](), maps, rtol=1e-4, atol=1e-5)
    return measure_arms(arms, args.rounds)


def table(measured: dict[str, dict]) -> str:
    """One row for each arm of each measurement, against the plain arm of the same measurement."""
    rows = []
    for title, results in measured.items():
        for name, seconds in results['times'].items():
            ratios = ratio_cells(seconds, results['times'][PLAIN])
            rows.append((title, name, *ratios, f'{results["memory"][name]:.1f}'))
    return markdown_table(('what', 'attention', 'time / sdpa', 'range over the rounds', 'memory (MB)'), rows)


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure the layer at every length, and then the model."""
    args = parse_args(argv)
    prepare(args)
    names, measured = (PLAIN, *BACKENDS, MAPS), {}
    for length in args.lengths:
        measured[f'layer, L = {length}'] = measure(args, {name: layer_arm(args, length, name) for name in names})
    title = f'model of {args.model_layers} layers, L = {args.model_length}'
    measured[title] = measure(args, {name: model_arm(args, name) for name in names})
    print(table(measured))
    if args.output:
        write_json(args.output, dict(benchmark='interaction_cost', options=vars(args), results=measured))
    return measured


if __name__ == '__main__':
    main()
