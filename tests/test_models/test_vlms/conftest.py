"""Tiny models and batches for the tests of vision-language models."""

from functools import lru_cache

import pytest
import tiny_vlms
import torch

from mergemix_mm.models.vlms import HFVisionLanguageModel


@lru_cache
def _processor(family):
    return tiny_vlms.tiny_processor(family)


@pytest.fixture
def make():
    """make(family='llava', **kwargs) -> a model with the same random weights every time."""

    def build(family='llava', **kwargs):
        torch.manual_seed(0)
        return HFVisionLanguageModel(config=tiny_vlms.tiny_config(family), **kwargs)

    return build


@pytest.fixture
def batch_of():
    """batch_of(family, texts, padding_side, labels): one image per text; its last four tokens are its answer."""

    def encode(family='llava', texts=('what is it?', 'a b c'), padding_side='right', labels=True, first_image=0):
        token = tiny_vlms.image_token(family)
        images = [tiny_vlms.random_image(40, 56, first_image + row) for row in range(len(texts))]
        batch = _processor(family)(
            text=[f'{token}{text}' for text in texts],
            images=tiny_vlms.one_per_text(family, images),
            padding=True,
            padding_side=padding_side,
            return_tensors='pt',
        )
        batch = dict(batch)
        if labels:
            behind = batch['attention_mask'].flip(1).cumsum(dim=1).flip(1)
            answer = (behind <= 4) & (batch['attention_mask'] == 1)
            batch['labels'] = batch['input_ids'].masked_fill(~answer, -100)
        return batch

    return encode


@pytest.fixture
def loss_of():
    """loss_of(vlm, batch) -> mean cross entropy of the answer tokens."""

    def compute(vlm, batch):
        logits = vlm.head(vlm.hidden(batch))
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch['labels'][:, 1:].flatten())

    return compute
