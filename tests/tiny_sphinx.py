"""A tiny SPHINX for tests: four encoders with random weights in the roles of the paper's, and a byte tokenizer."""

import tiny_vlms
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPECIAL_TOKENS = ('<pad>', '<s>', '</s>', '<unk>')
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
WIDTH = 16
# Channels of the maps (CLIP, ConvNeXt, DINOv2) and of the sequence (Q-Former).
CHANNELS, SEQUENCE_CHANNELS = (8, 24, 12), (8,)
QUERIES = 32


def clip(image_size=32, patch_size=2):
    """CLIP in the role of ViT-L/14: a class token, then the patches."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2)
    return CLIPVisionModel(CLIPVisionConfig(image_size=image_size, patch_size=patch_size, **sizes))


def convnext():
    """A ConvNeXt of MMPretrain, whose map is coarser than the others, in the role of ConvNeXt-XXL."""
    from mmpretrain.models import ConvNeXt

    arch = dict(depths=[1, 1], channels=[12, 24])
    return ConvNeXt(arch=arch, out_indices=(1,), stem_patch_size=2, gap_before_final_norm=False)


def dinov2(image_size=32, patch_size=2):
    """DINOv2 in the role of ViT-g/14."""
    from transformers import Dinov2Config, Dinov2Model

    sizes = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2)
    return Dinov2Model(Dinov2Config(image_size=image_size, patch_size=patch_size, **sizes))


def qformer(image_size=32):
    """BLIP-2's vision model and Q-Former."""
    from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig, Blip2VisionModelWithProjection

    sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    vision = Blip2VisionConfig(image_size=image_size, patch_size=8, **sizes)
    config = Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=Blip2QFormerConfig(encoder_hidden_size=8, vocab_size=8, **sizes).to_dict(),
        num_query_tokens=QUERIES,
        image_text_hidden_size=4,
    )
    model = Blip2VisionModelWithProjection(config)
    torch.nn.init.normal_(model.query_tokens)
    return model


def encoders(frozen=True):
    """What `MultiBackbone` takes: all four."""
    return [
        dict(encoder=clip(), input_size=32, frozen=frozen),
        dict(encoder=convnext(), input_size=32, frozen=frozen),
        dict(encoder=dinov2(), input_size=32, mean=IMAGENET_MEAN, std=IMAGENET_STD, frozen=frozen),
        dict(encoder=qformer(), input_size=32, frozen=frozen),
    ]


def language_config(**kwargs):
    """A Llama of two layers that knows bytes alone."""
    return tiny_vlms.text_config(
        tiny_vlms.LLAMA_TOKENS, model_type='llama', vocab_size=VOCAB_SIZE, hidden_size=WIDTH, **kwargs
    )


def sphinx_config(mixed=False, **kwargs):
    """Arguments of `SphinxModel`: all four encoders on a grid of 16 x 16, or one CLIP on a grid of 2 x 2."""
    from mergemix_mm.datasets.processors.sphinx import CLIP_MEAN, CLIP_STD

    if mixed:
        parts, neck = encoders(), dict(in_channels=CHANNELS, sequence_channels=SEQUENCE_CHANNELS, grid=16)
    else:
        parts, neck = [dict(encoder=clip(28, 14), input_size=28)], dict(in_channels=CHANNELS[:1], grid=2)
    return dict(
        type='SphinxModel',
        language_model=dict(config=language_config()),
        backbone=dict(type='MultiBackbone', encoders=parts, mean=CLIP_MEAN, std=CLIP_STD),
        neck=dict(type='EmbeddingMixNeck', out_channels=WIDTH, class_token=True, **neck),
        image_token_id=VOCAB_SIZE,
    ) | dict(kwargs)


def processor(mixed=False, grid=1, **kwargs):
    """The processor that belongs to :func:`sphinx_config`."""
    from mergemix_mm.datasets import SphinxProcessor

    size, tokens = (32, QUERIES + 1 + 256) if mixed else (28, 1 + 4)
    return SphinxProcessor(tokenizer(), view_tokens=tokens, image_size=grid * size, grid=grid, **kwargs)


def tokenizer():
    """One token per byte behind four special tokens."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    names = dict(zip(('pad_token', 'bos_token', 'eos_token', 'unk_token'), SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokens, clean_up_tokenization_spaces=False, **names)


def batch(processor, samples, **kwargs):
    """What `ConversationCollate` makes of (images, question, answer)s."""
    from mergemix_mm.datasets import ConversationCollate, EncodeConversation

    encode = EncodeConversation(processor, **kwargs)
    records = []
    for images, question, answer in samples:
        content = [*(dict(type='image') for _ in images), dict(type='text', text=question)]
        reply = dict(role='assistant', content=[dict(type='text', text=answer)])
        records.append(dict(messages=[dict(role='user', content=content), reply], images=images))
    side = 'left' if kwargs.get('generate') else 'right'
    return ConversationCollate(side)([encode(record) for record in records])
