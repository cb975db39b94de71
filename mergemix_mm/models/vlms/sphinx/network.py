"""The modules of SPHINX (https://arxiv.org/abs/2311.07575): views of images, their encoder, markers, language model.

Shapes: B samples, L tokens, N images, V views of each (the whole image, then g x g crops row by row), R views that are
encoded, T tokens of a view, C channels.
"""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ....functional import split_views
from ....utils.numbers import check_number, is_number
from ...decoders import embedding_factor, find_decoder
from .causal_head import causal_head, check_head

# The markers have the ids that follow `image_token_id`, and one row each in the learned embeddings.
NUM_MARKERS = 3
START, END, SKIP = range(NUM_MARKERS)
# Crops per side of an image.
GRIDS = (1, 2, 3)


class ViewEncoder(BaseModule):
    """Several vision backbones encode the whole image and its crops ("mixing of scales"); a neck mixes their outputs.

    Every backbone has its own view size, and is called once for all views of a batch. Views that only hold padding are
    not encoded.

    Args:
        backbone (nn.Module): A `MultiBackbone`.
        neck (nn.Module): An `EmbeddingMixNeck` with ``output='tokens'`` and a fixed ``grid``.
        grid (int): Crops per side: 1 (only the whole image), 2 or 3. Defaults to 1.
        crop_pool (int, optional): Side of the squares of patches that are averaged in crops, a divisor of the neck's
            grid; sequences and class token stay. Defaults to None: patches are not averaged.

    Raises:
        ValueError: If an argument cannot be used.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module, grid: int = 1, crop_pool: int | None = None) -> None:
        super().__init__()
        if not is_number(grid, integer=True) or grid not in GRIDS:
            raise ValueError(f'SphinxModel: grid={grid!r} must be one of {GRIDS}: 1 is only the whole image')
        if neck.output != 'tokens' or not isinstance(neck.grid, int):
            raise ValueError(
                f"SphinxModel: neck.output={neck.output!r} and neck.grid={neck.grid!r} must be 'tokens' and a number, "
                'as a language model reads equally many tokens of every view'
            )
        usable = crop_pool is None or (is_number(crop_pool, least=1, integer=True) and grid > 1)
        if not usable or (crop_pool is not None and neck.grid % crop_pool):
            raise ValueError(
                f'SphinxModel: crop_pool={crop_pool!r} needs crops (grid={grid}; 2 or 3) and must divide '
                f'neck.grid={neck.grid}'
            )
        self.backbone, self.neck, self.crop_pool = backbone, neck, crop_pool
        # 0 instead of 1: a single crop would be the whole image again.
        self.crop_grid = grid if grid > 1 else 0

    @property
    def num_views(self) -> int:
        """V: the whole image and its crops."""
        return 1 + self.crop_grid**2

    def forward(self, images: Tensor, real: Tensor | None = None) -> Tensor:
        """Encode images.

        Args:
            images (Tensor): [N, 3, S, S], squares in the backbone's common normalisation.
            real (Tensor, optional): [N, V] bool, the views to encode, always True for the first view of an image.
                Defaults to None: all views.

        Returns:
            Tensor: [tokens, C] of all encoded views, image by image, view by view.
        """
        if real is None:
            real = torch.ones(len(images), self.num_views, dtype=torch.bool, device=images.device)
        tokens = self.neck(tuple(self._encode(branch, images, real) for branch in self.backbone.branches))
        whole = torch.zeros_like(real)
        whole[:, 0] = True
        return tokens.flatten(0, 1) if self.crop_pool is None else self._pool_crops(tokens, whole[real], self.crop_pool)

    def _encode(self, branch: nn.Module, images: Tensor, real: Tensor) -> Tensor | tuple:
        """The output of one backbone for the views, at its own view size."""
        size = branch.input_size or images.size(-1) // max(self.crop_grid, 1)
        return branch(split_views(images, self.crop_grid, size)[real])

    def _pool_crops(self, tokens: Tensor, whole: Tensor, pool: int) -> Tensor:
        """[R, T, C], of which those of `whole` [R] are whole images -> [tokens, C] with fewer tokens for crops."""
        num_patches = self.neck.grid**2
        prefix, patches = tokens[~whole].split([tokens.size(1) - num_patches, num_patches], dim=1)
        maps = patches.transpose(1, 2).unflatten(2, (self.neck.grid, self.neck.grid))
        crops = torch.cat([prefix, F.avg_pool2d(maps, pool).flatten(2).transpose(1, 2)], dim=1)
        views, next_crop = [], iter(crops)
        for view, is_whole in zip(tokens, whole.tolist(), strict=True):
            views.append(view if is_whole else next(next_crop))
        return torch.cat(views)


class SphinxNetwork(nn.Module):
    """A language model that reads the views of images between learned markers.

    Four ids are not words: ``image_token_id`` for one token of a view, followed by the ids for the start of a view, its
    end, and a skipped view. They need not be in the vocabulary of the language model.

    Args:
        language_model (nn.Module): A causal language model of transformers.
        vision (ViewEncoder): Computes the tokens of views.
        image_token_id (int): The first of the four ids.

    Raises:
        ValueError: If the neck's channels are not those of the language model, or images cannot be put into it.
    """

    # Peft asks models of transformers for the name of their base model; this module has none.
    base_model_prefix = ''

    def __init__(self, language_model: nn.Module, vision: ViewEncoder, image_token_id: int) -> None:
        super().__init__()
        allowed = 'an integer of at least 0, below 2 ** 31'
        check_number('SphinxModel: image_token_id', image_token_id, allowed, least=0, below=1 << 31, integer=True)
        name, decoder = find_decoder(language_model)
        if getattr(decoder.config, 'hidden_size_per_layer_input', 0):
            raise ValueError(
                f'SphinxModel: language_model {type(language_model).__name__} looks up token ids in every '
                'layer (hidden_size_per_layer_input), which images do not have; give another language model'
            )
        check_head(language_model)
        self.language_model = language_model
        # The language model without its head, by its name: modules around it may change.
        self.decoder_name = f'language_model.{name}'
        self._embedding_factor = embedding_factor(decoder)
        self.vision = vision
        embeddings = language_model.get_input_embeddings()
        width = embeddings.embedding_dim
        if vision.neck.out_channels != width:
            raise ValueError(
                f'SphinxModel: neck.out_channels={vision.neck.out_channels} must be {width}, the width of the language '
                "model's embeddings"
            )
        self.markers = nn.Embedding(NUM_MARKERS, width, dtype=embeddings.weight.dtype)
        nn.init.normal_(self.markers.weight, std=getattr(self.config, 'initializer_range', 0.02))
        self.image_token_id = image_token_id

    @property
    def config(self):
        """The language model's."""
        return self.language_model.config

    @property
    def recorded_model(self) -> nn.Module:
        """The model of transformers whose attention `InteractionRecorder` records; encoders may be such models too."""
        return self.language_model

    @property
    def generation_config(self):
        """The language model's."""
        return self.language_model.generation_config

    @property
    def head(self) -> nn.Module:
        """Hidden states -> logits."""
        return causal_head(self.language_model)

    def gradient_checkpointing_enable(self, options: dict) -> None:
        """Switch checkpointing on in the layers of the language model."""
        self.language_model.gradient_checkpointing_enable(options)

    def views(self, input_ids: Tensor) -> Tensor:
        """Which views of each image the ids hold, [N, V] bool, in the order of the samples.

        Raises:
            ValueError: If the markers are not those of complete images.
        """
        marks = input_ids[(input_ids == self._id(START)) | (input_ids == self._id(SKIP))]
        num_views = self.vision.num_views
        if len(marks) % num_views or (marks.view(-1, num_views)[:, 0] == self._id(SKIP)).any():
            raise ValueError(
                f'SphinxModel: input_ids hold {len(marks)} views, which are not complete images of {num_views}. Give '
                f'the processor the grid of the model ({max(self.vision.crop_grid, 1)}), and do not let truncation cut '
                'images: raise max_length'
            )
        return marks.view(-1, num_views) == self._id(START)

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None) -> Tensor:
        """Tokens [B, L] and images [N, 3, S, S] -> the input of the language model [B, L, C].

        Raises:
            ValueError: If tokens and images do not belong together.
        """
        first = self.image_token_id
        is_image, is_marker = input_ids == first, (input_ids > first) & (input_ids <= first + NUM_MARKERS)
        # Ids of images and markers may lie outside the vocabulary; their embeddings are replaced below.
        embeds = self.language_model.get_input_embeddings()(input_ids.masked_fill(is_image | is_marker, 0))
        real = self.views(input_ids)
        num_images = 0 if pixel_values is None else len(pixel_values)
        if len(real) != num_images:
            raise ValueError(f'SphinxModel: input_ids hold {len(real)} images for {num_images} in pixel_values')
        if not num_images:
            return embeds
        tokens = self.vision(pixel_values, real)
        if len(tokens) != is_image.sum():
            raise ValueError(
                f'SphinxModel: {int(is_image.sum())} image tokens in input_ids for {len(tokens)} tokens of '
                f"{int(real.sum())} views: set the processor's view_tokens and crop_tokens to those of the model"
            )
        # The layers read markers and tokens of images as they are here, whatever is done to those of words.
        markers = self.markers(input_ids[is_marker] - first - 1) / self._embedding_factor
        tokens = tokens / self._embedding_factor
        embeds = embeds.masked_scatter(is_marker[..., None], markers.to(embeds.dtype))
        return embeds.masked_scatter(is_image[..., None], tokens.to(embeds.dtype))

    def _id(self, marker: int) -> int:
        return self.image_token_id + 1 + marker
