"""Tiny vision-language models for tests: per family a config for random weights and the real processor, without a hub.

The tokenizer has one token per byte behind the special tokens of the family's released checkpoints, so that every text
is encoded, located and decoded exactly. A processor has no chat template of its own.
"""

import numpy as np
from PIL import Image

# First the padding, begin, end and unknown token (None where the family has none), then the other special tokens.
LLAMA_TOKENS = ('<pad>', '<s>', '</s>', '<unk>', '<image>')
SPECIAL_TOKENS = {
    'llava': LLAMA_TOKENS,
    'llava_next': LLAMA_TOKENS,
    'paligemma': ('<pad>', '<bos>', '<eos>', '<unk>', '<image>'),
    'internvl': (
        '<|endoftext|>',
        None,
        '<|im_end|>',
        None,
        '<|im_start|>',
        '<img>',
        '</img>',
        '<IMG_CONTEXT>',
        '<video>',
    ),
    'smolvlm': (
        '<|im_end|>',
        '<|im_start|>',
        '<end_of_utterance>',
        '<|endoftext|>',
        '<fake_token_around_image>',
        '<image>',
        '<global-img>',
        *(f'<row_{row}_col_{col}>' for row in range(1, 4) for col in range(1, 4)),
    ),
    'qwen2_5_vl': (
        '<|endoftext|>',
        None,
        '<|im_end|>',
        None,
        '<|im_start|>',
        '<|vision_start|>',
        '<|vision_end|>',
        '<|vision_pad|>',
        '<|image_pad|>',
        '<|video_pad|>',
    ),
    'janus': (
        '<｜▁pad▁｜>',
        '<｜begin▁of▁sentence｜>',
        '<｜end▁of▁sentence｜>',
        None,
        '<image_placeholder>',
        '<begin_of_image>',
        '<end_of_image>',
        '<|User|>',
        '<|Assistant|>',
    ),
    'emu3': (
        '<|endoftext|>',
        '<|extra_203|>',
        '<|extra_204|>',
        None,
        '<image>',
        '<|image start|>',
        '<|image token|>',
        '<|image end|>',
        '<|extra_200|>',
        '<|extra_201|>',
        *(f'<|visual token {code:06d}|>' for code in range(32)),
    ),
}
ALL_FAMILIES = tuple(SPECIAL_TOKENS)
# Those with a vision tower, which the library's own forward reads images with.
FAMILIES = tuple(family for family in ALL_FAMILIES if family != 'emu3')
UNIFIED = ('janus', 'emu3')
# What the tokenizers of released checkpoints offer as attributes (`tokenizer.image_token`).
NAMED_TOKENS = {
    'internvl': dict(
        start_image_token='<img>', end_image_token='</img>', context_image_token='<IMG_CONTEXT>', video_token='<video>'
    ),
    'smolvlm': dict(
        fake_image_token='<fake_token_around_image>',
        image_token='<image>',
        global_image_token='<global-img>',
        end_of_utterance_token='<end_of_utterance>',
    ),
    'janus': dict(image_token='<image_placeholder>', boi_token='<begin_of_image>', eoi_token='<end_of_image>'),
    'emu3': dict(
        image_token='<image>',
        boi_token='<|image start|>',
        eoi_token='<|image end|>',
        image_wrapper_token='<|image token|>',
        eof_token='<|extra_201|>',
    ),
}
IMAGE_TOKENS = {'internvl': '<IMG_CONTEXT>', 'qwen2_5_vl': '<|image_pad|>', 'janus': '<image_placeholder>'}
# Tokenizers that begin a text with the begin token.
WRITE_BOS = ('LlamaTokenizerFast', 'GemmaTokenizerFast')
# A placeholder with what the family's template writes around it.
IMAGE_TEXTS = {'qwen2_5_vl': '<|vision_start|><|image_pad|><|vision_end|>'}
VOCAB_SIZE = 300  # 256 bytes and every family's special tokens.
LOCATION_TOKENS = 1024 + 128  # PaliGemma's processor appends its <loc> and <seg> tokens.
MAX_LENGTH = 4096


def image_token(family):
    """The placeholder of an image in a family's text, e.g. '<image>'."""
    return IMAGE_TOKENS.get(family, '<image>')


def random_image(height, width, seed):
    """A smooth random PIL image: a 5 x 5 field of colours, enlarged."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def tiny_config(family):
    """A fresh dict of the family's config, for `HFVisionLanguageModel(config=...)`: two layers, 16 channels."""
    return dict(model_type=family, **_CONFIGS[family]())


def tiny_processor(family):
    """The family's processor class over a byte tokenizer and images of 28 pixels (Qwen2.5-VL: up to 112)."""
    return _PROCESSORS[family](tiny_tokenizer(family))


def tiny_batch(family, samples, padding_side='right'):
    """What the family's processor makes of conversations, with labels at the answers and the sizes of the images.

    Args:
        family (str): One of `ALL_FAMILIES`.
        samples (list[tuple]): Images (a list), prompt and answer (ASCII) of each sample; the images stand in front.
        padding_side (str): 'left' or 'right'.
    """
    import torch

    if family == 'paligemma' and not any(images for images, _, _ in samples):  # Its call asks for an image.
        batch = tiny_batch(family, [*samples, ([random_image(28, 28, 0)], '', '')], padding_side)
        used = batch['attention_mask'][:-1].any(dim=0)
        return {key: batch[key][:-1, used] for key in ('input_ids', 'attention_mask', 'token_type_ids', 'labels')}
    processor, images = tiny_processor(family), [images for images, _, _ in samples]
    prompts = [IMAGE_TEXTS.get(family, image_token(family)) * len(group) + text for group, text, _ in samples]
    answers = [answer for _, _, answer in samples]
    if family != 'smolvlm':
        images = [image for group in images for image in group]
    options = dict(images=images if any(images) else None, padding=True, return_tensors='pt')
    if family == 'paligemma':
        processor.tokenizer.padding_side = padding_side  # Its call has no such option.
        batch = dict(processor(text=prompts, suffix=answers, **options))
    else:
        texts = [prompt + answer for prompt, answer in zip(prompts, answers)]
        batch = dict(processor(text=texts, padding_side=padding_side, **options))
        ends = batch['attention_mask'].flip(1).argmax(1)  # Tokens behind the answer.
        places = torch.arange(batch['input_ids'].size(1)).flip(0) - ends[:, None]
        lengths = torch.tensor([len(answer) for answer in answers])
        answered = (places >= 0) & (places < lengths[:, None])
        batch['labels'] = batch['input_ids'].masked_fill(~answered, -100)
    if any(images):
        batch['original_sizes'] = torch.tensor([image.size[::-1] for group, _, _ in samples for image in group])
    return batch


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
    name = dict(
        paligemma='GemmaTokenizerFast',
        internvl='Qwen2TokenizerFast',
        qwen2_5_vl='Qwen2TokenizerFast',
        smolvlm='PreTrainedTokenizerFast',
        emu3='GPT2TokenizerFast',
    ).get(family, 'LlamaTokenizerFast')
    options = dict(legacy=False)
    if transformers.__version__.startswith('5'):  # Classes of a model rebuild themselves as that model has them.
        # What version 4 writes in front of a text; saying no, as to saying nothing, would take away what is there.
        name, options = 'PreTrainedTokenizerFast', dict(add_bos_token=True) if bos and name in WRITE_BOS else {}
    return getattr(transformers, name)(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=NAMED_TOKENS.get(family, {}),
        model_max_length=MAX_LENGTH,
        model_input_names=['input_ids', 'attention_mask'],
        **options,
    )


def token_id(family, token):
    """The id of one of the family's special tokens."""
    return [known for known in SPECIAL_TOKENS[family] if known is not None].index(token)


def _text(family, **config):
    pad, bos, eos = SPECIAL_TOKENS[family][:3]
    return dict(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=token_id(family, pad),
        bos_token_id=None if bos is None else token_id(family, bos),
        eos_token_id=token_id(family, eos),
        initializer_range=0.2,
        tie_word_embeddings=False,
    ) | dict(config)


def _tower(**config):
    return dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
        initializer_range=0.2,
    ) | dict(config)


def _llava_config(family='llava', patch_size=7):
    return dict(
        vision_config=_tower(model_type='clip_vision_model', patch_size=patch_size),
        text_config=_text(family, model_type='llama'),
        image_token_index=token_id(family, '<image>'),
        image_seq_length=(28 // patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy='default',
    )


PINPOINTS = [[28, 56], [56, 28], [56, 56]]


def _llava_next_config():
    return _llava_config('llava_next', patch_size=14) | dict(image_grid_pinpoints=PINPOINTS)


def _paligemma_config():
    # Gemma scales embeddings and ties them to its head.
    text = _text('paligemma', model_type='gemma', head_dim=4, tie_word_embeddings=True)
    return dict(
        vision_config=_tower(model_type='siglip_vision_model', vision_use_head=False),
        text_config=text | dict(vocab_size=VOCAB_SIZE + LOCATION_TOKENS),
        image_token_index=token_id('paligemma', '<image>'),
        projection_dim=16,
        hidden_size=16,
        pad_token_id=text['pad_token_id'],
        bos_token_id=text['bos_token_id'],
        eos_token_id=text['eos_token_id'],
    )


def _internvl_config():
    return dict(
        # Layer scale starts at 0.1 in releases: a tower of two layers would hardly change its patches.
        vision_config=_tower(
            model_type='internvl_vision',
            image_size=[28, 28],
            patch_size=[7, 7],
            attention_bias=True,
            layer_scale_init_value=0.8,
        ),
        text_config=_text('internvl', model_type='qwen2'),
        image_token_id=token_id('internvl', '<IMG_CONTEXT>'),
        image_seq_length=4,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy='default',
    )


def _mend_small_patches():
    """Let SmolVLM of transformers 5.17 and 5.20 merge image tokens by views.

    It takes as many at a time as a patch has pixels on a side, which divides the tokens of a view in real sizes only.
    """
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMModel

    merge = getattr(SmolVLMModel, 'inputs_merger', None)
    if merge is None or hasattr(merge, 'mended'):
        return

    def by_views(self, input_ids, inputs_embeds, image_hidden_states):
        config = self.config.vision_config
        patch_size = config.patch_size
        config.patch_size = (config.image_size // patch_size // self.config.scale_factor) ** 2
        try:
            return merge(self, input_ids, inputs_embeds, image_hidden_states)
        finally:
            config.patch_size = patch_size

    by_views.mended = True
    SmolVLMModel.inputs_merger = by_views


def _smolvlm_config():
    _mend_small_patches()
    text = _text('smolvlm', model_type='llama')
    return dict(
        vision_config=_tower(model_type='smolvlm_vision'),
        text_config=text,
        image_token_id=token_id('smolvlm', '<image>'),
        scale_factor=2,
        pad_token_id=text['pad_token_id'],
        tie_word_embeddings=False,
    )


def _qwen2_5_vl_config():
    return dict(
        vision_config=dict(
            depth=2,
            hidden_size=16,
            intermediate_size=32,
            num_heads=2,
            out_hidden_size=16,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=56,
            fullatt_block_indexes=[1],
            initializer_range=0.2,
        ),
        text_config=_text('qwen2_5_vl', rope_scaling=dict(type='mrope', mrope_section=[1, 1, 0])),
        image_token_id=token_id('qwen2_5_vl', '<|image_pad|>'),
        video_token_id=token_id('qwen2_5_vl', '<|video_pad|>'),
        vision_start_token_id=token_id('qwen2_5_vl', '<|vision_start|>'),
        vision_end_token_id=token_id('qwen2_5_vl', '<|vision_end|>'),
        tie_word_embeddings=False,
    )


def _janus_config():
    tower = _tower(model_type='janus_vision_model', projection_dim=16, num_image_tokens=16, depth=1, mlp_ratio=2)
    return dict(
        text_config=_text('janus', model_type='llama'),
        vision_config=tower,
        vq_config=dict(
            embed_dim=8,
            num_embeddings=32,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            projection_dim=16,
            image_token_embed_dim=16,
            num_hidden_layers=1,
        ),
        image_token_id=token_id('janus', '<image_placeholder>'),
    )


def _emu3_config():
    vocabulary = tiny_tokenizer('emu3').get_vocab()
    return dict(
        text_config=_text('emu3', attention_dropout=0.0),
        vq_config=dict(
            codebook_size=32,
            embed_dim=4,
            latent_channels=4,
            temporal_downsample_factor=1,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            hidden_size=32,
            attn_resolutions=[],
        ),
        vocabulary_map=vocabulary,
    )


_CONFIGS = dict(
    llava=_llava_config,
    llava_next=_llava_next_config,
    paligemma=_paligemma_config,
    internvl=_internvl_config,
    smolvlm=_smolvlm_config,
    qwen2_5_vl=_qwen2_5_vl_config,
    janus=_janus_config,
    emu3=_emu3_config,
)


def _llava_processor(tokenizer):
    from transformers import CLIPImageProcessor, LlavaProcessor

    images = CLIPImageProcessor(size=dict(shortest_edge=28), crop_size=dict(height=28, width=28))
    return LlavaProcessor(
        images, tokenizer, patch_size=7, vision_feature_select_strategy='default', num_additional_image_tokens=1
    )


def _llava_next_processor(tokenizer):
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    images = LlavaNextImageProcessor(
        size=dict(shortest_edge=28), crop_size=dict(height=28, width=28), image_grid_pinpoints=PINPOINTS
    )
    return LlavaNextProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy='default', num_additional_image_tokens=1
    )


def _paligemma_processor(tokenizer):
    from transformers import PaliGemmaProcessor, SiglipImageProcessor

    images = SiglipImageProcessor(size=dict(height=28, width=28))
    images.image_seq_length = 16
    return PaliGemmaProcessor(images, tokenizer)


def _internvl_processor(tokenizer):
    from transformers import GotOcr2ImageProcessorFast, InternVLProcessor, InternVLVideoProcessor

    images = GotOcr2ImageProcessorFast(size=dict(height=28, width=28), crop_to_patches=True, max_patches=6)
    videos = InternVLVideoProcessor(size=dict(height=28, width=28))
    return InternVLProcessor(images, tokenizer, videos, image_seq_length=4)


def _smolvlm_processor(tokenizer):
    import pytest

    pytest.importorskip('num2words')  # The class asks for it, and writes numbers of films with it.
    from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    sizes = dict(size=dict(longest_edge=84), max_image_size=dict(longest_edge=28))
    # The video processor's defaults lack what it reads at construction.
    videos = SmolVLMVideoProcessor(**sizes, video_sampling=dict(fps=1, max_frames=4, video_size=dict(longest_edge=28)))
    return SmolVLMProcessor(SmolVLMImageProcessor(**sizes), tokenizer, videos, image_seq_len=4)


def _qwen2_5_vl_processor(tokenizer):
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessorFast, Qwen2VLVideoProcessor

    pixels = dict(min_pixels=28 * 28, max_pixels=112 * 112)
    return Qwen2_5_VLProcessor(Qwen2VLImageProcessorFast(**pixels), tokenizer, Qwen2VLVideoProcessor(**pixels))


def _janus_processor(tokenizer):
    from transformers import JanusImageProcessor, JanusProcessor

    processor = JanusProcessor(JanusImageProcessor(size=dict(height=28, width=28), min_size=7), tokenizer)
    processor.num_image_tokens = 16  # The class knows the released model's 576 only.
    return processor


def _emu3_processor(tokenizer):
    from transformers import Emu3ImageProcessor, Emu3Processor

    images = Emu3ImageProcessor(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, spatial_factor=2, min_pixels=4 * 4, max_pixels=8 * 8
    )
    processor = Emu3Processor(images, tokenizer)
    processor.downsample_ratio = 2  # The class knows the released model's 8 only.
    return processor


_PROCESSORS = dict(
    llava=_llava_processor,
    llava_next=_llava_next_processor,
    paligemma=_paligemma_processor,
    internvl=_internvl_processor,
    smolvlm=_smolvlm_processor,
    qwen2_5_vl=_qwen2_5_vl_processor,
    janus=_janus_processor,
    emu3=_emu3_processor,
)
