"""Models that read and generate images with one language model; an image is generated code by code."""

from abc import abstractmethod
from inspect import signature

import torch
from torch import Tensor, nn

from ....functional.preference import IGNORE_INDEX
from ...evaluation_mode import evaluation_mode
from ..base import TEXT
from ..generation import pad_left
from ..hf.hf_vision_language_model import HFVisionLanguageModel


class UnifiedModel(HFVisionLanguageModel):
    """A vision-language model that also generates images.

    With batches of conversations it is a :class:`HFVisionLanguageModel`. A *generation batch* holds prompts and the
    images to be generated:

    - ``input_ids`` [B, L] and ``attention_mask`` [B, L]: prompts, padded on either side. Each ends with the token that
      begins the image;
    - ``target_images`` [B, 3, H, W] in [-1, 1], all of one size, or their ``codes``, if these are known already.

    `prepare` appends the images to the prompts. Shapes: B samples, L tokens, C channels, T codes of an image.
    """

    def prepare(self, batch: dict) -> dict:
        """A shallow copy of a batch; the images of a generation batch are appended to its prompts, once.

        ``input_ids`` and ``attention_mask`` then cover prompt and image, and ``codes`` are those of the images.
        ``labels`` [B, L] hold, at each position of a code, the target that `head_of` predicts one position before, and
        -100 elsewhere.

        Raises:
            ValueError: If prompts or images do not have the form that the model needs.
        """
        if not self.is_generation(batch):
            return super().prepare(batch)
        if 'codes' in batch and 'labels' in batch:  # Prepared before: the images are already appended.
            return dict(batch)
        codes = batch['codes'] if 'codes' in batch else self.encode_images(batch['target_images'])
        prompts = dict(input_ids=batch['input_ids'], attention_mask=_attention_mask(batch))
        self.check_prompts(prompts, codes)
        ids, labels = self.image_tokens(codes)
        image = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
        prompts['labels'] = torch.full_like(prompts['input_ids'], IGNORE_INDEX)
        joined = {key: torch.cat([prompts[key], image[key]], dim=1) for key in image}
        if not prompts['attention_mask'][:, -1].all():  # The image follows the prompt, and then the padding.
            order = (joined['attention_mask'] == 0).long().argsort(dim=1, stable=True)
            joined = {key: value.gather(1, order) for key, value in joined.items()}
        return {**batch, **joined, 'codes': codes}

    @property
    def exact_modules(self) -> list[nn.Module]:
        """Modules that compute in the dtype of their weights: the VQ model, whose codes would change by rounding."""
        return [self.family.model.model.vqmodel]

    def hidden(self, batch: dict, **attention_kwargs) -> Tensor:
        if not self.is_generation(batch):
            return super().hidden(batch, **attention_kwargs)
        batch = self.prepare(batch)
        with self.autocast(batch):
            inputs = dict(inputs_embeds=self.embed(batch), attention_mask=batch['attention_mask'])
            return self._decode(self.family.language_model, inputs, **attention_kwargs)

    def modality(self, batch: dict) -> Tensor:
        """As for any model. The tokens that frame an image, such as the one before it, are ``MARKER``; the rest of a
        prompt is ``TEXT``, dropped or not.
        """
        return super().modality(self.prepare(batch))

    def drop_prompts(self, batch: dict, dropped: Tensor) -> dict:
        """Blank prompts for classifier-free guidance: their text becomes padding tokens, which are attended to.

        The tokens that begin the sequence and the image stay, as does everything else. A dropped prompt therefore still
        tells its length, and nothing more.

        Args:
            batch (dict): Generation batch, prepared or not, or only prompts.
            dropped (Tensor): [B] bool.
        """
        places = self.prompt_text(batch) & (batch['input_ids'] != self.special_id('bos')) & dropped[:, None]
        return {**batch, 'input_ids': batch['input_ids'].masked_fill(places, self.special_id('pad'))}

    def generate_image(
        self,
        batch: dict,
        guidance_scale: float = 5.0,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Generate an image for each prompt, with a key-value cache and in eval mode.

        Args:
            batch (dict): ``input_ids`` [B, L] and ``attention_mask`` [B, L] of prompts that end with the token that
                begins the image, padded on either side.
            guidance_scale (float): s of classifier-free guidance (https://arxiv.org/abs/2207.12598): logits are
                uncond + s * (cond - uncond), where uncond are those of the dropped prompt. 1 generates without
                guidance, at half the cost. Defaults to 5.0, as for Janus; Emu3 uses 3.0.
            temperature (float): Of the choice among codes, >= 0; 0 takes the most probable code. Defaults to 1.0.
            generator (torch.Generator, optional): Source of randomness. Defaults to None: torch's global one.

        Returns:
            Tensor: [B, 3, H, W] float32 in [0, 1].

        Raises:
            ValueError: If the temperature is negative, or the prompts do not have the form that the model needs.
        """
        if temperature < 0:
            raise ValueError(f'generate_image: temperature={temperature} must be 0 (most probable) or above')
        prompts = dict(input_ids=batch['input_ids'], attention_mask=_attention_mask(batch))
        self.check_prompts(prompts)
        with self.autocast(prompts), evaluation_mode(self, prompts['input_ids'].device.type):
            codes = self._generate_codes(pad_left(prompts), guidance_scale, temperature, generator)
            return ((self.decode_codes(codes).float() + 1) / 2).clamp(0, 1)

    def _generate_codes(
        self, prompts: dict, scale: float, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Prompts padded on the left -> codes [B, rows, columns]."""
        rows, columns = self.code_grid(prompts)
        copies = 1 if scale == 1 else 2
        ids, mask = prompts['input_ids'], prompts['attention_mask']
        if copies == 2:  # The second half of the batch has the dropped prompts.
            without = self.drop_prompts(prompts, torch.ones_like(ids[:, 0], dtype=torch.bool))
            ids, mask = torch.cat([ids, without['input_ids']]), mask.repeat(2, 1)
        model = self.family.language_model
        # The argument for the cache has another name in later versions of transformers 5.
        key = 'cache' if 'cache' in signature(model.forward).parameters else 'past_key_values'
        embeds, cache, codes = model.get_input_embeddings()(ids), None, []
        for place in range(1, rows * columns + 1):
            found = model(inputs_embeds=embeds, attention_mask=mask, use_cache=True, **{key: cache})
            cache = found[key]
            logits = self.code_logits(found.last_hidden_state[:, -1]).float()
            if copies == 2:
                given, blank = logits.chunk(2)
                logits = blank + scale * (given - blank)
            # Both halves continue with the same code.
            codes.append(_choose(logits, temperature, generator))
            embeds = self.embed_codes(codes[-1].repeat(copies)[:, None], ends_row=place % columns == 0).to(embeds.dtype)
            mask = torch.cat([mask, mask.new_ones(len(mask), embeds.size(1))], dim=1)
        return torch.stack(codes, dim=1).unflatten(1, (rows, columns))

    @staticmethod
    def is_generation(batch: dict) -> bool:
        """Whether a batch trains the generation of images."""
        return batch.get('target_images') is not None or batch.get('codes') is not None

    def special_id(self, name: str) -> int:
        """The id of the ``'bos'`` or ``'pad'`` token.

        Raises:
            ValueError: If the model's configs have none.
        """
        configs = self.family.model.generation_config, self.family.model.config.get_text_config()
        found = [getattr(config, f'{name}_token_id', None) for config in configs]
        for token in found:
            if token is not None:
                return token
        raise ValueError(
            f'{type(self).__name__}: classifier-free guidance needs the {name} token. Set {name}_token_id in the '
            "model's text_config or generation_config"
        )

    @abstractmethod
    def head_of(self, batch: dict) -> nn.Module:
        """The module that predicts this batch's labels: hidden states -> logits."""

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> codes of the frozen VQ model, without gradient and without autocast."""

    @abstractmethod
    def decode_codes(self, codes: Tensor) -> Tensor:
        """Codes [B, rows, columns] -> images [B, 3, H, W], approximately in [-1, 1]."""

    @abstractmethod
    def check_prompts(self, prompts: dict, codes: Tensor | None = None) -> None:
        """Refuse prompts that no image can follow, or, with `codes`, no image of these codes."""

    @abstractmethod
    def code_grid(self, prompts: dict) -> tuple[int, int]:
        """Rows and columns of the codes of an image that is generated."""

    @abstractmethod
    def image_tokens(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes -> the ids and the labels that are appended to those of the prompts."""

    @abstractmethod
    def embed(self, batch: dict) -> Tensor:
        """A prepared generation batch -> the language model's input [B, L, C]."""

    @abstractmethod
    def embed_codes(self, codes: Tensor, ends_row: bool) -> Tensor:
        """Codes [B, 1] -> the language model's input [B, 1, C], or [B, 2, C] if a token follows the end of a row."""

    @abstractmethod
    def code_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, C] -> logits of the codes, [B, codebook size]."""

    def prompt_text(self, batch: dict) -> Tensor:
        """The tokens that `drop_prompts` blanks, [B, L] bool; BOS may be included and is kept anyway."""
        return super().modality(batch) == TEXT


def _attention_mask(batch: dict) -> Tensor:
    mask = batch.get('attention_mask')
    return torch.ones_like(batch['input_ids']) if mask is None else mask


def last_tokens(mask: Tensor) -> Tensor:
    """Mask [B, L] of the last True in each row of a mask [B, L]."""
    return mask & (mask.flip(1).cumsum(dim=1).flip(1) == 1)


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One code per row of logits [B, V], [B] int64."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits / temperature).softmax(dim=-1)
    if generator is not None:  # multinomial needs both on one device.
        probabilities = probabilities.to(generator.device)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1).to(logits.device)
