"""SPHINX' processor: square images, and placeholders for the tokens of their views (https://arxiv.org/abs/2311.07575)."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import TRANSFORMS
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from ...functional import real_views, square_padding
from ...functional.views import ALIGNMENTS
from ...utils.files import write_json
from ...utils.numbers import check_number, is_number
from ...utils.text import quoted, shown
from ..conversations.chat_template import read_template, repository_templates
from ..transforms.image_tokens import expand

IMAGE_TOKEN = '<image>'
# Their ids follow that of the image token, in the order that `SphinxModel` expects.
MARKER_TOKENS = ('<image_start>', '<image_end>', '<image_skip>')
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FILE = 'sphinx_processor.json'
SAVED = ('view_tokens', 'image_size', 'grid', 'crop_tokens', 'align', 'image_mean', 'image_std', 'chat_template')


@TRANSFORMS.register_module()
class SphinxProcessor:
    """Prepares texts and images for `SphinxModel`, with the interface of a processor of transformers.

    An image is padded to a square with the mean colour, which is about 0 after the normalisation, and resized. In a
    text, ``<image>`` becomes the tokens of its views, first those of the whole image and then those of the crops, row
    by row. A view is ``<image_start>``, ``view_tokens`` times ``<image>``, and ``<image_end>``; a crop with nothing but
    padding is ``<image_skip>``. The four tokens get the next ids after the tokenizer's own.

    Args:
        tokenizer (str | dict | PreTrainedTokenizerFast): The tokenizer of the language model: a name on the hub or a
            folder, the config of a function that makes it, or the tokenizer. The four tokens are added to it; without a
            padding token, it pads with the end token.
        view_tokens (int): Tokens of a view without its markers: queries of sequences + class token + grid ** 2 of the
            neck; 289 in SPHINX.
        image_size (int): Side of the square in pixels: the view size of the backbones times ``grid``. Defaults to 224.
        grid (int): Crops per side, as in the model; 1 means no crops. Defaults to 1.
        crop_tokens (int, optional): Tokens of a crop if the model has ``crop_pool``. Defaults to None: as many as
            ``view_tokens``.
        align (str): Where the image lies in the square: ``'center'`` or ``'corner'`` (upper left). Defaults to
            ``'center'``.
        image_mean (Sequence[float]): Means of the channels, in [0, 1]. Defaults to those of CLIP.
        image_std (Sequence[float]): Standard deviations of the channels, > 0. Defaults to those of CLIP.
        chat_template (str): The name of a template of this repository, or the text of a template in Jinja. Defaults to
            ``'llava'``, which puts images first, as SPHINX does.

    Raises:
        ValueError: If an argument is out of its range, the template is unknown, or the tokenizer already has some of
            the tokens.

    Examples:
        >>> processor = dict(type='SphinxProcessor', tokenizer='meta-llama/Llama-2-7b-hf', view_tokens=289,
        ...                  image_size=448, grid=2)
    """

    # Attributes that processors of transformers have: by them, image tokens are found and the normalisation is
    # undone.
    image_token = IMAGE_TOKEN
    do_normalize = do_rescale = True
    rescale_factor = 1 / 255

    def __init__(
        self,
        tokenizer,
        view_tokens: int,
        image_size: int = 224,
        grid: int = 1,
        crop_tokens: int | None = None,
        align: str = 'center',
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        chat_template: str = 'llava',
    ) -> None:
        if align not in ALIGNMENTS:
            raise ValueError(f'SphinxProcessor: align={align!r} must be one of {ALIGNMENTS}')
        counts = dict(view_tokens=view_tokens, image_size=image_size, grid=grid)
        counts |= {} if crop_tokens is None else dict(crop_tokens=crop_tokens)
        for name, value in counts.items():
            check_number(f'SphinxProcessor: {name}', value, 'an integer of at least 1', least=1, integer=True)
        _check_channels('image_mean', image_mean, '0 <= mean <= 1', least=0, most=1)
        _check_channels('image_std', image_std, 'std > 0', above=0)
        self.tokenizer = _add_tokens(_load_tokenizer(tokenizer))
        self.view_tokens, self.crop_tokens = view_tokens, view_tokens if crop_tokens is None else crop_tokens
        self.image_size, self.grid, self.align = image_size, grid, align
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        if chat_template in repository_templates():
            chat_template = read_template(chat_template)
        elif not isinstance(chat_template, str) or '{' not in chat_template:
            raise ValueError(
                f'SphinxProcessor: chat_template={shown(chat_template)!r} is neither a text in Jinja nor one of '
                f'{repository_templates()}'
            )
        self.chat_template = chat_template
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    @property
    def image_processor(self) -> 'SphinxProcessor':
        """This object, which has mean, standard deviation and scale of the images like an image processor."""
        return self

    def __call__(
        self,
        text: str | Sequence[str],
        images: Sequence[Image.Image] | None = None,
        add_special_tokens: bool = True,
        padding_side: str = 'right',
        return_tensors: str = 'pt',
    ) -> dict[str, torch.Tensor]:
        """Encode texts and their images.

        Args:
            text (str | Sequence[str]): B texts, with one ``<image>`` for each image.
            images (Sequence[PIL.Image.Image], optional): N images, in the order of the texts. Defaults to None.
            add_special_tokens (bool): Whether the tokenizer adds its own. Defaults to True.
            padding_side (str): Where shorter texts are padded. Defaults to ``'right'``.
            return_tensors (str): Only ``'pt'``, torch's.

        Returns:
            dict: ``input_ids`` and ``attention_mask`` [B, L] int64; with images ``pixel_values`` [N, 3, S, S] float32
            and ``original_sizes`` [N, 2] int64, height and width.

        Raises:
            ValueError: If the number of placeholders in the texts differs from the number of images.
        """
        texts, images = [text] if isinstance(text, str) else list(text), list(images or ())
        rows = self.tokenizer(texts, add_special_tokens=add_special_tokens)['input_ids']
        found = sum(row.count(self.image_token_id) for row in rows)
        if found != len(images):
            raise ValueError(f'SphinxProcessor: the texts hold {found} times {IMAGE_TOKEN} for {len(images)} images')
        tokens = iter([self.tokens_of(image.height, image.width) for image in images])
        rows = [torch.tensor(expand(row, self.image_token_id, tokens), dtype=torch.long) for row in rows]

        def pad(rows: list[torch.Tensor], fill: int) -> torch.Tensor:
            return pad_sequence(rows, batch_first=True, padding_value=fill, padding_side=padding_side)

        batch = dict(
            input_ids=pad(rows, self.tokenizer.pad_token_id),
            attention_mask=pad([torch.ones_like(row) for row in rows], 0),
        )
        if images:
            batch['pixel_values'] = torch.stack([self.pixels_of(image) for image in images])
            batch['original_sizes'] = torch.tensor([(image.height, image.width) for image in images])
        return batch

    def tokens_of(self, height: int, width: int) -> list[int]:
        """The ids of the tokens of an image of this size in pixels."""
        start, end, skip = range(self.image_token_id + 1, self.image_token_id + 1 + len(MARKER_TOKENS))
        real = real_views(torch.tensor([[height, width]]), self.grid if self.grid > 1 else 0, self.align)[0]
        ids = []
        for view, is_real in enumerate(real.tolist()):
            length = self.crop_tokens if view else self.view_tokens
            ids += [start, *[self.image_token_id] * length, end] if is_real else [skip]
        return ids

    def pixels_of(self, image: Image.Image) -> torch.Tensor:
        """The padded and normalised image, [3, S, S] float32."""
        image = image.convert('RGB')
        side, offset = square_padding(torch.tensor([image.height, image.width]), self.align)
        # The mean colour becomes 0 after the normalisation, so the padding carries no signal.
        square = Image.new('RGB', (int(side),) * 2, tuple(round(255 * mean) for mean in self.image_mean))
        square.paste(image, tuple(offset.tolist()))
        square = square.resize((self.image_size,) * 2, Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(square, dtype=np.float32) / 255).permute(2, 0, 1)
        return (pixels - torch.tensor(self.image_mean).view(3, 1, 1)) / torch.tensor(self.image_std).view(3, 1, 1)

    def batch_decode(self, *args, **kwargs) -> list[str]:
        """See the method of the tokenizer."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args, **kwargs) -> str:
        """See the method of the tokenizer."""
        return self.tokenizer.decode(*args, **kwargs)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files of the tokenizer, and the arguments in ``sphinx_processor.json``."""
        self.tokenizer.save_pretrained(folder)
        write_json(Path(folder, FILE), {name: getattr(self, name) for name in SAVED})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> 'SphinxProcessor':
        """Read what :meth:`save_pretrained` wrote.

        Raises:
            OSError: If the folder has no such file.
            ValueError: If the file is damaged, has other keys, or values out of their ranges.
        """
        path = Path(folder, FILE)
        if not path.is_file():
            raise OSError(f'SphinxProcessor: there is no {path}; name a folder of save_pretrained')
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
        except (ValueError, RecursionError) as error:
            raise ValueError(f'SphinxProcessor: {path} is not a JSON file: {type(error).__name__}: {error}') from None
        unknown = sorted(content.keys() - set(SAVED)) if isinstance(content, dict) else [content]
        if unknown or 'view_tokens' not in content:
            raise ValueError(
                f'SphinxProcessor: {path} has {shown(unknown)}; it must say view_tokens and may say {SAVED}'
            )
        return cls(str(folder), **content)


def _check_channels(name: str, values: Sequence[float], allowed: str, **limits) -> None:
    usable = isinstance(values, Sequence | np.ndarray) and len(values) == 3
    if not usable or not all(is_number(value, **limits) for value in values):
        raise ValueError(
            f'SphinxProcessor: {name}={quoted(values)} must be three numbers, one per channel, with {allowed}'
        )


def _load_tokenizer(tokenizer):
    if isinstance(tokenizer, dict):
        return TRANSFORMS.build(tokenizer)
    if isinstance(tokenizer, str):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    return tokenizer


def _add_tokens(tokenizer):
    """Add the four tokens to a tokenizer; `SphinxModel` expects consecutive ids."""
    tokens = [IMAGE_TOKEN, *MARKER_TOKENS]
    tokenizer.add_tokens(tokens, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    if ids != list(range(ids[0], ids[0] + len(ids))):
        raise ValueError(
            f'SphinxProcessor: the tokenizer gives {tokens} the ids {ids}, which are not in a row: it knows some of '
            'them already. Take the tokenizer of the plain language model'
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
