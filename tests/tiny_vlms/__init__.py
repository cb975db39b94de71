"""Tiny vision-language models for tests: per family a config for random weights and the real processor, without a hub.

One file of this folder describes one family. The tests of datasets, models and tuners then run for it:

- ``SPECIAL_TOKENS``: those of the released checkpoints; first padding, begin, end and unknown token (None if missing);
- ``config()`` and ``processor(tokenizer)``;
- ``WRITTEN``: two questions and answers in the documented format, answers and what ends them between brackets;
- optionally

  - ``IMAGE_TOKEN``: the placeholder;
  - ``IMAGE_TEXT``: with what the family's template writes around it;
  - ``FEATURE_TOKEN``: what the processor writes of an image in place of it, once per image token;
  - ``MARGINS``: text that it writes before and after an image;
  - ``CLOSING``: what ends an answer, if not the end token alone;
  - ``FRAME``: the tokens around an image;
  - ``ONE_RUN``: False if an image is not one run of image tokens between those of ``FRAME``;
  - ``LATE_SYSTEM``: True if the template writes the system prompt into the last question;
  - ``NAMED_TOKENS``: attributes of released tokenizers;
  - ``TOKENIZER``: its class under transformers 4;
  - ``WRITES_BOS``: the tokenizer begins a text with the begin token;
  - ``NESTS_IMAGES``: the processor takes a list of images per text; with ``SKIPS_TEXTS``, only of texts that have any;
  - ``HAS_TOWER``: False if the library's forward reads no images;
  - ``SCORED``: False if MergeMix cannot score the tower;
  - ``SCORED_SIZE``: at which it scores; None: at the size of each image;
  - ``LARGEST_IMAGE``: the size of an image with as many tokens as possible, and the processor options that decide it;
  - ``SMALLEST_SIDE``: of images that every version of the processor takes;
  - ``SHARED``: other types of models that the family serves, with what their config has besides;
  - ``TRANSFORMERS``: the versions that have the model; the file is left out where the installed version does not;
  - a ``model_type`` in the config, where it is not the name of the file.

``python tests/families_table.py`` then writes the family's line of docs/families.md.

The tokenizer has one token per byte after the special tokens, so that every text is encoded, located and decoded
exactly. A processor has no chat template of its own, unless its class serves several families.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules

import numpy as np
import torch
from PIL import Image

from ._parts import LLAMA_TOKENS, MAX_LENGTH, VOCAB_SIZE, text_config, token_ids  # noqa: F401

_MODULES = {
    found.name: import_module(f'{__name__}.{found.name}')
    for found in iter_modules(__path__)
    if not found.name.startswith('_') and find_spec(f'transformers.models.{found.name}')
}
ALL_FAMILIES = tuple(_MODULES)
# Those with a vision tower, which the library's own forward reads images with.
FAMILIES = tuple(name for name, module in _MODULES.items() if getattr(module, 'HAS_TOWER', True))
# Those whose images are one run of image tokens each, within their frame.
ONE_RUN = tuple(name for name in FAMILIES if getattr(_MODULES[name], 'ONE_RUN', True))
# Those whose tower MergeMix scores; the others need its `encoder`.
SCORED = tuple(name for name in FAMILIES if getattr(_MODULES[name], 'SCORED', True))
SCORED_SIZE = {name: getattr(_MODULES[name], 'SCORED_SIZE', (28, 28)) for name in SCORED}
UNIFIED = ('janus', 'emu3')
SPECIAL_TOKENS = {name: module.SPECIAL_TOKENS for name, module in _MODULES.items()}
WRITTEN = {name: module.WRITTEN for name, module in _MODULES.items()}
# What ends an answer.
CLOSING = {name: getattr(module, 'CLOSING', module.SPECIAL_TOKENS[2]) for name, module in _MODULES.items()}
SHARED = [
    (name, model_type)
    for name, module in _MODULES.items()
    for model_type in getattr(module, 'SHARED', {})
    if find_spec(f'transformers.models.{model_type}')
]
LARGEST_IMAGE = {name: getattr(module, 'LARGEST_IMAGE', ((500, 500), {})) for name, module in _MODULES.items()}
TRANSFORMERS = {name: getattr(module, 'TRANSFORMERS', '4.57 and 5') for name, module in _MODULES.items()}
SMALLEST_SIDE = {name: getattr(module, 'SMALLEST_SIDE', 1) for name, module in _MODULES.items()}
FRAMES = {name: module.FRAME for name, module in _MODULES.items() if hasattr(module, 'FRAME')}
LATE_SYSTEM = tuple(name for name, module in _MODULES.items() if getattr(module, 'LATE_SYSTEM', False))


def image_token(family):
    """The placeholder of an image in a family's text, e.g. '<image>'."""
    return getattr(_MODULES[family], 'IMAGE_TOKEN', '<image>')


def image_text(family):
    """A placeholder with what the family's template writes around it."""
    return getattr(_MODULES[family], 'IMAGE_TEXT', image_token(family))


def feature_token(family):
    """What stands for one image token, e.g. '<image>'."""
    return getattr(_MODULES[family], 'FEATURE_TOKEN', image_token(family))


def margins(family):
    """Text that the processor writes before and after an image."""
    return getattr(_MODULES[family], 'MARGINS', ('', ''))


def one_per_text(family, images):
    """Images, the first for the first text and so on, as the processor takes them."""
    return [[image] for image in images] if getattr(_MODULES[family], 'NESTS_IMAGES', False) else list(images)


def random_image(height, width, seed):
    """A smooth random PIL image: a 5 x 5 field of colours, enlarged."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def tiny_config(family):
    """A fresh dict of the family's config, for `HFVisionLanguageModel(config=...)`: two layers, 16 channels."""
    return dict(model_type=family) | _MODULES[family].config()


def tiny_processor(family):
    """The family's processor class over a byte tokenizer and images of 28 pixels (Qwen2.5-VL: up to 112)."""
    return _MODULES[family].processor(tiny_tokenizer(family))


def given_images(family, groups):
    """The images of some texts, a list of each, as the family's processor takes them."""
    module = _MODULES[family]
    if not getattr(module, 'NESTS_IMAGES', False):
        return [image for group in groups for image in group]
    return [group for group in groups if group or not getattr(module, 'SKIPS_TEXTS', False)]


def tiny_batch(family, samples, padding_side='right'):
    """What the family's processor makes of conversations, with labels at the answers and the sizes of the images.

    Args:
        family (str): One of `ALL_FAMILIES`.
        samples (list[tuple]): Images (a list), prompt and answer (ASCII) of each sample; the images come first.
        padding_side (str): 'left' or 'right'.
    """
    if family == 'paligemma' and not any(images for images, _, _ in samples):  # Its call asks for an image.
        batch = tiny_batch(family, [*samples, ([random_image(28, 28, 0)], '', '')], padding_side)
        used = batch['attention_mask'][:-1].any(dim=0)
        return {key: batch[key][:-1, used] for key in ('input_ids', 'attention_mask', 'token_type_ids', 'labels')}
    processor, images = tiny_processor(family), [images for images, _, _ in samples]
    prompts = [image_text(family) * len(group) + text for group, text, _ in samples]
    answers = [answer for _, _, answer in samples]
    images = given_images(family, images)
    options = dict(images=images if any(images) else None, padding=True, return_tensors='pt')
    if family == 'paligemma':
        processor.tokenizer.padding_side = padding_side  # Its call has no such option.
        batch = dict(processor(text=prompts, suffix=answers, **options))
    else:
        texts = [prompt + answer for prompt, answer in zip(prompts, answers)]
        batch = dict(processor(text=texts, padding_side=padding_side, **options))
        ends = batch['attention_mask'].flip(1).argmax(1)  # Tokens after the answer.
        places = torch.arange(batch['input_ids'].size(1)).flip(0) - ends[:, None]
        lengths = torch.tensor([len(answer) for answer in answers])
        answered = (places >= 0) & (places < lengths[:, None])
        batch['labels'] = batch['input_ids'].masked_fill(~answered, -100)
    if any(images):
        batch['original_sizes'] = torch.tensor([image.size[::-1] for group, _, _ in samples for image in group])
    return batch


def library_inputs(vlm, batch, dtype=None):
    """What the library's own model with head takes of a batch; that of Emu3 drops pixels, and is given the codes.

    A `dtype` is that of the pixels: the library casts for most towers, but not for Pixtral's under transformers 4.
    """
    if vlm.family.model.config.model_type == 'emu3':
        tokens = {key: value for key, value in batch.items() if key in ('attention_mask', 'labels')}
        return dict(tokens, input_ids=vlm.family.with_codes(batch))
    given = {key: value for key, value in batch.items() if key != 'original_sizes'}
    return given if dtype is None else dict(given, pixel_values=given['pixel_values'].to(dtype))


@cache
def tiny_family(family):
    """A family's views on its tiny model, in eval mode. Tests share it: they must not change it."""
    return model_of_type(family)


def config_of_type(family, model_type=None):
    """The config of another type of models that the family serves."""
    config = tiny_config(family)
    config['model_type'] = model_type or config['model_type']
    for part, values in getattr(_MODULES[family], 'SHARED', {}).get(model_type, {}).items():
        config[part] |= values
    return config


def model_of_type(family, model_type=None, vision=None):
    """The views on a tiny model of this type, in eval mode; `vision` changes its tower."""
    import transformers

    from mergemix_mm.families import build_family

    torch.manual_seed(0)
    config = config_of_type(family, model_type)
    if vision is not None:
        config['vision_config'] |= vision
    config = transformers.AutoConfig.for_model(**config)
    return build_family(transformers.AutoModelForImageTextToText.from_config(config).eval())


SIZES = [(40, 60), (100, 30), (28, 28), (31, 200), (90, 91), (60, 40), (200, 45), (7, 30)]


def sizes(family):
    """Sizes of images that the family's processor takes."""
    return [size for size in SIZES if min(size) >= SMALLEST_SIDE[family]]


def mixed_batch(family, padding_side='right'):
    """A batch of samples with two images, none, one, and again none."""
    images = [random_image(*size, seed) for seed, size in enumerate(SIZES[:3])]
    samples = [(images[:2], 'which?', ' both'), ([], 'hello', ' you'), (images[2:], 'and this?', ' no'), ([], 'a', 'b')]
    return tiny_batch(family, samples, padding_side)


def one_image(family, height, width):
    """A batch of one sample with one image."""
    return tiny_batch(family, [([random_image(height, width, 0)], 'what?', ' that')])


def tiny_tokenizer(family):
    """A fast tokenizer of bytes whose ids agree with :func:`tiny_config`."""
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pad, bos, eos, unk = SPECIAL_TOKENS[family][:4]
    special = [token for token in SPECIAL_TOKENS[family] if token is not None]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(special + alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    module = _MODULES[family]
    name, options = getattr(module, 'TOKENIZER', 'LlamaTokenizerFast'), dict(legacy=False)
    if transformers.__version__.startswith('5'):  # Classes of a model rebuild themselves as that model has them.
        # What version 4 writes in front of a text; saying no, as to saying nothing, would take away what is there.
        name, options = 'PreTrainedTokenizerFast', {}
        if getattr(module, 'WRITES_BOS', False):
            options = dict(add_bos_token=True)
    return getattr(transformers, name)(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=getattr(module, 'NAMED_TOKENS', {}),
        model_max_length=MAX_LENGTH,
        model_input_names=['input_ids', 'attention_mask'],
        **options,
    )


def token_id(family, token):
    """The id of one of the family's special tokens."""
    return token_ids(SPECIAL_TOKENS[family])[token]
