"""Makes a LLaVA-1.5 from a trained vision tower, a trained language model and a new projector.

Stage 1 of LLaVA (https://arxiv.org/abs/2310.03744) starts from such a model. All weights are written in the dtype of
the language model.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from mergemix_mm.datasets.conversations.chat_template import find_chat_template
from mergemix_mm.datasets.processors.llava_padding import pad_to_square
from mergemix_mm.engine.launch import LaunchError
from mergemix_mm.models.vlms.hf.loading import find_config
from mergemix_mm.models.vlms.hf.saving import check_replaceable, replaced_folder, save_model, save_processor
from mergemix_mm.models.vlms.weight_names import old_options
from mergemix_mm.utils.text import one_line

# model_type of a config -> the class of the tower in transformers, and whether the tower has a class token.
TOWERS = dict(
    clip=('CLIPVisionModel', True),
    clip_vision_model=('CLIPVisionModel', True),
    siglip=('SiglipVisionModel', False),
    siglip_vision_model=('SiglipVisionModel', False),
)
# Vocabularies are padded to a multiple of this, which suits tensor cores.
VOCAB_MULTIPLE = 64


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'vision', help='CLIP or SigLIP: name on the hub, or folder, e.g. openai/clip-vit-large-patch14-336'
    )
    parser.add_argument('language', help='causal language model: name on the hub, or folder, e.g. lmsys/vicuna-7b-v1.5')
    parser.add_argument('out', type=Path, help='the folder to write; a model there is replaced')
    parser.add_argument(
        '--chat-template',
        default='llava',
        help='template to save with the processor: a name of this repository, or a file (default: %(default)s)',
    )
    parser.add_argument('--seed', type=int, default=0, help='of the projector and new tokens (default: %(default)s)')
    return parser.parse_args(argv)


def load_vision(name: str) -> tuple[nn.Module, object, bool]:
    """The vision tower, its image processor, and whether it has a class token.

    Raises:
        SystemExit: If there is no such model, or it is neither CLIP nor SigLIP.
    """
    import transformers

    config = _load('VISION', transformers.AutoConfig, name)
    if config.model_type not in TOWERS:
        raise LaunchError(f'VISION: {name} is of model_type={config.model_type!r}; LLaVA takes one of {sorted(TOWERS)}')
    class_name, has_class_token = TOWERS[config.model_type]
    options = old_options(f'transformers.{class_name}.from_pretrained')
    tower = _load('VISION', getattr(transformers, class_name), name, dtype='auto', **options)
    images = _load('VISION', transformers.AutoImageProcessor, name, use_fast=False)
    size = getattr(images, 'crop_size', None) if getattr(images, 'do_center_crop', False) else images.size
    if {size.get('height'), size.get('width')} != {tower.config.image_size}:
        raise LaunchError(
            f'VISION: the processor of {name} makes images of {dict(size)}, the tower takes '
            f'{tower.config.image_size} x {tower.config.image_size}; repair its preprocessor_config.json'
        )
    # The processor of SigLIP squeezes an image into a square. That of CLIP would cut off its borders.
    return tower, pad_to_square(images) if has_class_token else images, has_class_token


def load_language(name: str) -> tuple[nn.Module, object]:
    """The language model, and its tokenizer with ``<image>`` and, unless it has a padding token, ``<pad>``.

    Raises:
        SystemExit: If there is no such model, or it has no fast tokenizer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        config = find_config('LANGUAGE', name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise LaunchError(f'LANGUAGE: {error}') from None
    language = _load('LANGUAGE', AutoModelForCausalLM, name, dtype='auto', config=config).eval()
    # The token is named, so that templates of transformers find it.
    tokenizer = _load('LANGUAGE', AutoTokenizer, name, extra_special_tokens=dict(image_token='<image>'))
    if not tokenizer.is_fast:
        raise LaunchError(f'LANGUAGE: {name} has no fast tokenizer, which is needed to find labels')
    # A padding token with a second meaning would be masked out or never be learnt.
    used = {tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, None}
    if tokenizer.pad_token in used:
        tokenizer.add_special_tokens(dict(pad_token='<pad>'))
    return language, tokenizer


def compose(vision: nn.Module, language: nn.Module, tokenizer, has_class_token: bool, seed: int = 0) -> nn.Module:
    """Join tower and language model by a projector. Their modules become those of the result.

    Args:
        vision (nn.Module): CLIPVisionModel or SiglipVisionModel.
        language (nn.Module): A causal language model.
        tokenizer (PreTrainedTokenizerFast): Knows ``<image>`` and a padding token.
        has_class_token (bool): Whether the first token of the tower is a class token.
        seed (int): Seed of the projector, which has torch's default initialization, and of the new tokens. Defaults
            to 0.

    Returns:
        LlavaForConditionalGeneration: The model. The size of its embeddings is a multiple of 64.

    Raises:
        SystemExit: If the head of the language model is more than a matrix (bias, scale, cap).
    """
    from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    config = LlavaConfig(
        vision_config=vision.config,
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids('<image>'),
        image_seq_length=(vision.config.image_size // vision.config.patch_size) ** 2,
        vision_feature_select_strategy='default' if has_class_token else 'full',
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    torch.manual_seed(seed)
    with torch.device('meta'):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = vision
    model.model.language_model = language.base_model
    model.model.multi_modal_projector = LlavaMultiModalProjector(config)
    model.lm_head = language.get_output_embeddings()
    _check_same(model.eval(), language)
    rows = max(len(tokenizer), language.config.vocab_size)
    model.resize_token_embeddings(rows, pad_to_multiple_of=VOCAB_MULTIPLE)
    language.config.pad_token_id = config.pad_token_id = tokenizer.pad_token_id
    # That of Vicuna sets a temperature without sampling, which transformers refuses to save.
    ends = {key: getattr(language.generation_config, key) for key in ('bos_token_id', 'eos_token_id')}
    model.generation_config = GenerationConfig(**ends, pad_token_id=tokenizer.pad_token_id)
    return model


@torch.no_grad()
def _check_same(model: nn.Module, language: nn.Module) -> None:
    """Refuse language models with computations that the code of LLaVA leaves out."""
    ids = torch.arange(4)[None]
    if not torch.equal(model(input_ids=ids).logits, language(input_ids=ids).logits):
        raise LaunchError(
            f'LANGUAGE: {type(language).__name__} gives other logits inside of LLaVA, which leaves out a bias, scale '
            'or cap of its head; take Llama, Vicuna, Mistral or Qwen2'
        )


def _load(argument: str, loader: type, name: str, **options):
    try:
        return loader.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # A damaged file can raise any exception.
        raise LaunchError(f'{argument}: {loader.__name__} cannot load {name}: {one_line(error, 300)}') from error


def main(argv: Sequence[str] | None = None) -> None:
    """Compose and write the model, and print its path.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.
    """
    from transformers import LlavaProcessor

    args = parse_args(argv)
    try:
        check_replaceable(args.out)
    except OSError as error:
        raise LaunchError(f'OUT: {error}') from None
    vision, images, has_class_token = load_vision(args.vision)
    language, tokenizer = load_language(args.language)
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=vision.config.patch_size,
        vision_feature_select_strategy='default' if has_class_token else 'full',
        num_additional_image_tokens=int(has_class_token),
    )
    try:
        processor.chat_template = find_chat_template(processor, args.chat_template).text
    except ValueError as error:
        raise LaunchError(f'--chat-template: {error}') from error
    model = compose(vision, language, tokenizer, has_class_token, args.seed)
    with replaced_folder(args.out) as folder:
        save_model(model, folder, language.dtype)
        save_processor(processor, folder)
    print(f'Model with a new projector written to {args.out}')


if __name__ == '__main__':
    main()
