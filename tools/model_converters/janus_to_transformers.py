"""Converts a Janus in DeepSeek's layout, which the release of AIA (https://arxiv.org/abs/2511.22663) has, to the format
of transformers.
"""

import argparse
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mergemix_mm.datasets.conversations.chat_template import find_chat_template
from mergemix_mm.engine.launch import LaunchError
from mergemix_mm.engine.weights import state_dict_of
from mergemix_mm.models.vlms.hf.saving import replaced_folder, save_processor, write_dtype
from mergemix_mm.utils.safe_load import CheckpointError, safe_load
from mergemix_mm.utils.text import shown

# Tensors of a checkpoint that the model of transformers does not have: statistics of the codebook, the pooling of the
# vision tower, and frequencies that are computed.
UNUSED = re.compile(
    r'gen_vision_model\.quantize\.codebook_used|vision_model\.vision_tower\.attn_pool\..*|.*\.rotary_emb\.inv_freq'
)
# Names whose numbers stay the same. The first pattern that matches the whole name is used.
RENAMED = [
    (r'language_model\.(lm_head\..*)', r'\1'),
    (r'language_model\.model\.(.*)', r'model.language_model.\1'),
    (r'gen_embed\.(.*)', r'model.generation_embeddings.\1'),
    (r'gen_head\.output_mlp_projector\.(.*)', r'model.generation_head.proj_out.\1'),
    (r'gen_head\.(vision_head\..*)', r'model.generation_head.\1'),
    (r'vision_model\.vision_tower\.patch_embed\.proj\.(.*)', r'model.vision_model.embeddings.patch_embedding.\1'),
    (r'vision_model\.vision_tower\.pos_embed', r'model.vision_model.embeddings.position_embedding.weight'),
    (r'vision_model\.vision_tower\.norm\.(.*)', r'model.vision_model.post_layernorm.\1'),
    (r'vision_model\.vision_tower\.blocks\.(\d+)\.norm(\d\..*)', r'model.vision_model.encoder.layers.\1.layer_norm\2'),
    (
        r'vision_model\.vision_tower\.blocks\.(\d+)\.attn\.proj\.(.*)',
        r'model.vision_model.encoder.layers.\1.self_attn.projection_layer.\2',
    ),
    (
        r'vision_model\.vision_tower\.blocks\.(\d+)\.attn\.([qk]_norm\..*)',
        r'model.vision_model.encoder.layers.\1.self_attn.\2',
    ),
    (r'vision_model\.vision_tower\.blocks\.(\d+)\.(mlp\..*)', r'model.vision_model.encoder.layers.\1.\2'),
    (r'gen_vision_model\.(quantize|quant_conv|post_quant_conv)\.(.*)', r'model.vqmodel.\1.\2'),
    (r'gen_vision_model\.(encoder|decoder)\.((?:conv_in|conv_out|norm_out)\..*)', r'model.vqmodel.\1.\2'),
    (r'gen_vision_model\.(encoder|decoder)\.mid\.0\.(.*)', r'model.vqmodel.\1.mid.block_1.\2'),
    (r'gen_vision_model\.(encoder|decoder)\.mid\.1\.(.*)', r'model.vqmodel.\1.mid.attn_1.\2'),
    (r'gen_vision_model\.(encoder|decoder)\.mid\.2\.(.*)', r'model.vqmodel.\1.mid.block_2.\2'),
    (r'gen_vision_model\.encoder\.conv_blocks\.(\d+)\.res\.(.*)', r'model.vqmodel.encoder.down.\1.block.\2'),
    (r'gen_vision_model\.decoder\.conv_blocks\.(\d+)\.res\.(.*)', r'model.vqmodel.decoder.up.\1.block.\2'),
    (r'gen_vision_model\.encoder\.conv_blocks\.(\d+)\.((?:attn|downsample)\..*)', r'model.vqmodel.encoder.down.\1.\2'),
    (r'gen_vision_model\.decoder\.conv_blocks\.(\d+)\.((?:attn|upsample)\..*)', r'model.vqmodel.decoder.up.\1.\2'),
]
MERGED = re.compile(r'vision_model\.vision_tower\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)')
# The linear layers of a projector have every other number, because activations are numbered as well.
PROJECTOR = re.compile(r'(gen_)?aligner\.layers\.(\d+)\.(weight|bias)')
PREFIX = 'module.'  # Wrappers add it to names.
NESTS = ('state_dict', 'model', 'module')  # Keys of the weights in files that training scripts write.

TOWERS = dict(
    siglip_large_patch16_384=dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=16, mlp_ratio=4.0
    )
)
SPECIAL_TOKENS = dict(image_token='<image_placeholder>', boi_token='<begin_of_image>', eoi_token='<end_of_image>')
# The padding token of the tokenizer may be its end-of-sentence token, which has to be learnt.
PAD_TOKEN = '<｜▁pad▁｜>'
SHARD_BYTES = 2 << 30


@dataclass(frozen=True)
class Piece:
    """A tensor to write: its name, that of its source, and which third of the source's rows it is (None: all)."""

    target: str
    source: str
    third: int | None = None

    def shape(self, source: Sequence[int]) -> tuple[int, ...]:
        """The shape of the tensor, given that of the source."""
        if self.third is not None:
            return (source[0] // 3, *source[1:])
        return tuple(source[1:]) if self.drops_batch else tuple(source)

    def cut(self, tensor: Tensor) -> Tensor:
        """The tensor, given the source."""
        if self.third is not None:
            tensor = tensor.chunk(3)[self.third]
        # Thirds and mapped tensors may share memory, which safetensors refuses. Hence a copy.
        return (tensor[0] if self.drops_batch else tensor).clone(memory_format=torch.contiguous_format)

    @property
    def drops_batch(self) -> bool:
        """Whether the first dimension of the source has size 1, as that of the positions of the vision tower."""
        return self.source.endswith('.pos_embed')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'source', metavar='IN', type=Path, help='folder or one file: safetensors, or weights in .bin, .pt or .pth'
    )
    parser.add_argument('out', metavar='OUT', type=Path, help='the folder to write; an existing one is replaced')
    parser.add_argument(
        '--like',
        metavar='MODEL',
        help="a Janus in transformers' format, on the hub or in a folder, whose config and processor are used, "
        'e.g. deepseek-community/Janus-Pro-7B (default: config.json and tokenizer of IN are translated)',
    )
    return parser.parse_args(argv)


def pieces_of(name: str) -> list[Piece]:
    """The pieces that a tensor becomes; none if its name is unknown.

    Args:
        name (str): The name in DeepSeek's layout, e.g. ``'aligner.layers.0.weight'``.
    """
    plain = name.removeprefix(PREFIX)
    if found := MERGED.fullmatch(plain):
        layer = f'model.vision_model.encoder.layers.{found[1]}.self_attn'
        return [Piece(f'{layer}.{part}_proj.{found[2]}', name, third) for third, part in enumerate('qkv')]
    if found := PROJECTOR.fullmatch(plain):
        part = 'generation_aligner' if found[1] else 'aligner'
        number, rest = divmod(int(found[2]), 2)
        layer = 'fc1' if number == 0 else f'hidden_layers.{number - 1}'
        return [] if rest else [Piece(f'model.{part}.{layer}.{found[3]}', name)]
    for pattern, replacement in RENAMED:
        if found := re.fullmatch(pattern, plain):
            return [Piece(found.expand(replacement), name)]
    return []


def plan(shapes: dict[str, Sequence[int]], wanted: dict[str, Sequence[int]]) -> list[Piece]:
    """The pieces to write, all of which are checked before any is read.

    Args:
        shapes (dict): The shapes of the checkpoint by names in DeepSeek's layout.
        wanted (dict): The shapes of the model by names in the layout of transformers.

    Raises:
        SystemExit: If the two do not match. The error lists all names that differ.
    """
    found: dict[str, Piece] = {}
    unknown, wrong = [], []
    for name, shape in shapes.items():
        if UNUSED.fullmatch(name.removeprefix(PREFIX)):
            continue
        pieces = pieces_of(name)
        if not pieces or not all(piece.target in wanted for piece in pieces):
            unknown.append(name)
            continue
        for piece in pieces:
            if piece.target in found:
                wrong.append(f'{piece.target}: comes from {found[piece.target].source} and from {name}')
            elif piece.shape(shape) != tuple(wanted[piece.target]):
                wrong.append(f'{name}: {list(shape)} does not make {piece.target} of {list(wanted[piece.target])}')
            found[piece.target] = piece
    missing = [target for target in wanted if target not in found]
    problems = {
        'names that the model has no place for': unknown,
        'weights of the model that the checkpoint lacks': missing,
        'weights that do not fit': wrong,
    }
    if any(problems.values()):
        text = '\n'.join(f'{len(v)} {k}:\n  ' + '\n  '.join(v) for k, v in problems.items() if v)
        raise LaunchError(
            f'IN: the checkpoint is not one of this Janus (or name the right config with --like):\n{text}'
        )
    return [found[target] for target in wanted]


def find_files(source: Path) -> list[Path]:
    """The files of a checkpoint: one, or the shards of a folder.

    Raises:
        SystemExit: If there are none, or a shard is missing.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise LaunchError(f'IN: there is no file or folder {source}')
    for index in sorted(source.glob('*.index.json')):  # model.safetensors.* before pytorch_model.bin.*
        files = sorted({source / name for name in _read_json(index, 'weight_map').values()})
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise LaunchError(f'IN: {index} names shards that are not there: {", ".join(missing)}')
        return files
    for patterns in (('*.safetensors',), ('*.bin', '*.pt', '*.pth')):
        files = sorted(path for pattern in patterns for path in source.glob(pattern))
        if files:
            return files
    raise LaunchError(f'IN: {source} holds no weights (*.safetensors, *.bin, *.pt or *.pth)')


def _read_json(path: Path, key: str | None = None) -> dict:
    """The dict in a file, or at a key of it.

    Raises:
        SystemExit: If there is none.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise LaunchError(f'IN: {path} is not a JSON file: {shown(error, 200)}') from None
    found = content.get(key) if key is not None and isinstance(content, dict) else content
    if not isinstance(found, dict) or (key == 'weight_map' and not all(isinstance(x, str) for x in found.values())):
        raise LaunchError(f'IN: {path} does not hold a dict{f" {key!r}" if key else ""}')
    return found


class Weights:
    """The tensors of some files by name, which are read one by one. A context manager.

    Args:
        files (Sequence[Path]): Files of safetensors, or files of torch.save with tensors only.

    Raises:
        SystemExit: If a file cannot be read without running its code, or two files have the same name.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._open = ExitStack()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._read: dict[str, Callable[[], Tensor]] = {}
        for path in files:
            for name, shape, read in self._entries(path):
                if name in self.shapes:
                    raise LaunchError(f'IN: {name} is in two files, one of them {path}; name only one of them')
                self.shapes[name], self._read[name] = tuple(shape), read

    def __enter__(self) -> 'Weights':
        return self

    def __exit__(self, *error) -> None:
        self._open.close()

    def __getitem__(self, name: str) -> Tensor:
        return self._read[name]()

    def _entries(self, path: Path) -> Iterator[tuple[str, Sequence[int], Callable[[], Tensor]]]:
        if path.suffix == '.safetensors':
            from safetensors import SafetensorError, safe_open

            try:
                file = self._open.enter_context(safe_open(path, framework='pt'))
            except (SafetensorError, OSError) as error:
                raise LaunchError(f'IN: {path} is not a safetensors file: {error}') from None
            for name in file.keys():  # noqa: SIM118 - it is not a dict
                yield name, file.get_slice(name).get_shape(), lambda name=name, file=file: file.get_tensor(name)
            return
        try:
            # Mapping reads only what is used. The old format of torch.save cannot be mapped.
            weights = safe_load(path, 'cpu', flag='torch.load(weights_only=False)', mmap=zipfile.is_zipfile(path))
        except CheckpointError as error:
            raise LaunchError(f'IN: {error}') from None
        try:
            weights = state_dict_of(weights, path, NESTS)
        except ValueError as error:
            raise LaunchError(f'IN: {error}') from None
        for name, tensor in weights.items():
            yield name, tensor.shape, lambda tensor=tensor: tensor


def translate_config(release: dict):
    """Translate DeepSeek's config.json into a JanusConfig of transformers.

    Raises:
        SystemExit: If it belongs to another model, or its vision tower is unknown.
    """
    from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

    if release.get('model_type') != 'multi_modality':
        raise LaunchError(
            f"IN: config.json has model_type={release.get('model_type')!r}, not 'multi_modality' as DeepSeek's Janus; "
            "name a Janus in transformers' format with --like"
        )
    try:
        parts = ('vision', 'aligner', 'gen_vision', 'gen_aligner', 'gen_head')
        vision, aligner, codes, gen_aligner, head = (release[f'{part}_config']['params'] for part in parts)
        tower, image_size = TOWERS[vision['model_name']], vision.get('image_size', 384)
        projection = dict(projection_dim=aligner['n_embed'], depth=aligner['depth'])
        vq = dict(
            embed_dim=codes['n_embed'],
            num_embeddings=codes['image_token_size'],
            projection_dim=gen_aligner['n_embed'],
            num_hidden_layers=gen_aligner['depth'],
            image_token_embed_dim=head['image_token_embed'],
        )
        text = {key: value for key, value in release['language_config'].items() if not key.startswith('_')}
    except KeyError as error:
        raise LaunchError(
            f'IN: config.json is not that of Janus or Janus-Pro ({error} is missing, or no known tower); name a Janus '
            "in transformers' format with --like"
        ) from None
    return JanusConfig(
        text_config=LlamaConfig(**text),
        vision_config=JanusVisionConfig(
            image_size=image_size, num_image_tokens=(image_size // tower['patch_size']) ** 2, **tower, **projection
        ),
        vq_config=JanusVQVAEConfig(**vq),
    )


def translate_processor(folder: Path):
    """Translate the tokenizer and the image processor of DeepSeek's folder into a JanusProcessor of transformers."""
    from transformers import AutoTokenizer, JanusImageProcessor, JanusProcessor

    try:
        images = json.loads((folder / 'preprocessor_config.json').read_text())
        tokenizer = AutoTokenizer.from_pretrained(folder, extra_special_tokens=SPECIAL_TOKENS, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise LaunchError(f'IN: {folder} has no usable processor ({error}); name a Janus with --like') from error
    if PAD_TOKEN in tokenizer.get_vocab():
        tokenizer.pad_token = PAD_TOKEN
    options = {key: images[key] for key in ('image_mean', 'image_std', 'min_size', 'rescale_factor') if key in images}
    size = images.get('image_size', 384)
    processor = JanusProcessor(
        JanusImageProcessor(size=dict(height=size, width=size), **options), tokenizer, use_default_system_prompt=True
    )
    processor.chat_template = find_chat_template(processor, 'janus').text
    return processor


def find_config(source: Path, like: str | None):
    """The config and the processor of the result. Both know the special tokens.

    Raises:
        SystemExit: If neither IN nor ``--like`` has them.
    """
    from transformers import AutoConfig, AutoProcessor

    if like is not None:
        try:
            config, processor = (
                auto.from_pretrained(like, trust_remote_code=False) for auto in (AutoConfig, AutoProcessor)
            )
        except (OSError, ValueError) as error:
            raise LaunchError(f'--like: {like} cannot be loaded: {error}') from error
        if config.model_type != 'janus':
            raise LaunchError(f"--like: {like} is of model_type={config.model_type!r}; name one of 'janus'")
    else:
        path = source / 'config.json'
        if not path.is_file():
            raise LaunchError(
                f'IN: {source} has no config.json; name the model that it was made from, e.g. '
                '--like deepseek-community/Janus-Pro-7B'
            )
        config, processor = translate_config(_read_json(path)), translate_processor(source)
        names = ('pad', 'bos', 'eos')
        config.text_config.update(
            {f'{name}_token_id': getattr(processor.tokenizer, f'{name}_token_id') for name in names}
        )
        config.image_token_id = processor.tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS['image_token'])
    # Both matrices are in the checkpoint.
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    config.architectures = ['JanusForConditionalGeneration']
    return config, processor


def generation_config(config, tokenizer):
    """The generation config. Its last two entries are read when images are generated."""
    from transformers import GenerationConfig

    text = config.text_config
    return GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        guidance_scale=5,
        generation_kwargs=dict(boi_token_id=tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS['boi_token'])),
    )


def wanted_shapes(config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of the model, which is built without weights."""
    from transformers import JanusForConditionalGeneration

    with torch.device('meta'):
        model = JanusForConditionalGeneration(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def write_weights(weights: Weights, pieces: Sequence[Piece], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the tensors in order, with at most one shard in memory."""
    shards: list[list[str]] = []
    batch: dict[str, Tensor] = {}
    size, total, dtype = 0, 0, dtype_of(weights, pieces)
    for piece in pieces:
        tensor = piece.cut(weights[piece.source]).to(dtype)
        if batch and size + tensor.nbytes > shard_bytes:
            shards.append(_write_shard(batch, folder, len(shards)))
            batch, size = {}, 0
        batch[piece.target] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    shards.append(_write_shard(batch, folder, len(shards)))
    if len(shards) == 1:
        (folder / '0.tmp').rename(folder / 'model.safetensors')
        return
    names = [f'model-{number + 1:05}-of-{len(shards):05}.safetensors' for number in range(len(shards))]
    for number, name in enumerate(names):
        (folder / f'{number}.tmp').rename(folder / name)
    weight_map = {target: name for name, targets in zip(names, shards, strict=True) for target in targets}
    index = dict(metadata=dict(total_size=total), weight_map=weight_map)
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index, indent=2))


def dtype_of(weights: Weights, pieces: Sequence[Piece]) -> torch.dtype:
    """The dtype of all weights, which is that of the head of the language model."""
    return next(weights[piece.source].dtype for piece in pieces if piece.target == 'lm_head.weight')


def _write_shard(tensors: dict[str, Tensor], folder: Path, number: int) -> list[str]:
    from safetensors.torch import save_file

    save_file(tensors, folder / f'{number}.tmp', {'format': 'pt'})
    return list(tensors)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert, and print the path of the result.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.
    """
    args = parse_args(argv)
    files = find_files(args.source)
    config, processor = find_config(args.source, args.like)
    with Weights(files) as weights, replaced_folder(args.out) as folder:
        pieces = plan(weights.shapes, wanted_shapes(config))
        write_weights(weights, pieces, folder)
        config.save_pretrained(folder)
        write_dtype(folder, dtype_of(weights, pieces))
        generation_config(config, processor.tokenizer).save_pretrained(folder)
        save_processor(processor, folder)
    print(f'Janus of {len(pieces)} tensors written to {args.out}')


if __name__ == '__main__':
    main()
