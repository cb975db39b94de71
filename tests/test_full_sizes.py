"""Every config that names released weights, at full width and depth: parameters, names, and tokens of an image.

Nothing is downloaded, and no memory is taken: the models lie on the meta device, their configs in
mergemix_mm/engine/planning/released.py.
"""

import math

import pytest
import tiny_vlms
import torch
import yaml
from mmengine.registry import init_default_scope
from mmengine.utils import get_installed_path
from repository_configs import config_files, load, parametrize

from mergemix_mm.engine.planning import StepMemory, build_weightless, image_input, part_sizes, training_batches
from mergemix_mm.engine.planning.four_bits import FourBitLinear
from mergemix_mm.engine.planning.released import FOLDERS, RELEASED
from mergemix_mm.models.tuners import BaseTuner

VLMS = [path for folder in ('simpo', 'aia', 'sphinx') for path in config_files(folder) if 'tiny-' not in path.stem]
CLASSIFIERS = [path for path in config_files('mergemix') if 'digits' not in path.stem]

# Parameters that are published, in units of the last digit that is, and where.
BILLION, MILLION = 10**9, 10**6
PUBLISHED = {
    'llava-hf/llava-1.5-7b-hf': (7.06, BILLION, 'model page on the hub'),
    'Qwen/Qwen2.5-VL-3B-Instruct': (3.75, BILLION, 'model page on the hub'),
    # Less the pooling of the tower, which transformers leaves out: 12.6 million.
    'deepseek-community/Janus-Pro-1B': (2.09 - 0.0126, BILLION, 'deepseek-ai/Janus-Pro-1B, a file of 4.18 GB in bf16'),
    'deepseek-community/Janus-Pro-7B': (7.42 - 0.0126, BILLION, 'deepseek-ai/Janus-Pro-7B, 9.99 + 4.85 GB in bf16'),
    # The language model has 8.49, the VQ model (BAAI/Emu3-VisionTokenizer, 1.08 GB in float32) 0.27.
    'BAAI/Emu3-Gen-hf': (8.49 + 0.27, BILLION, 'files of BAAI/Emu3-Gen, 34.0 GB in float32, and of the VQ model'),
    'meta-llama/Llama-2-7b-hf': (6.74, BILLION, 'model page on the hub'),
    'TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T': (1.10, BILLION, 'model page on the hub'),
    # Without the projection of the whole CLIP.
    'openai/clip-vit-large-patch14': (303, MILLION, 'ViT-L/14 without classifier, timm'),
    'openai/clip-vit-base-patch16': (86, MILLION, 'ViT-B/16, https://arxiv.org/abs/2010.11929, table 1'),
    'facebook/dinov2-giant': (1.1, BILLION, 'ViT-g/14, https://arxiv.org/abs/2304.07193'),
    # Less the embeddings of texts, 23.8 million.
    'Salesforce/blip2-itm-vit-g': (1.17 - 0.0238, BILLION, 'files of the hub, 4.7 GB in float32'),
}
# SPHINX, https://arxiv.org/abs/2311.07575: tokens of a view, and channels of the three encoders with patches.
VIEW_TOKENS, CHANNELS = 289, 5632
IMAGE_TOKENS = {
    'llava': 576,
    'qwen2.5': 1280,
    'janus': 576,
    'emu3': 90 * 91,
    'sphinx-7b': VIEW_TOKENS,
    'sphinx-1k-7b': 5 * VIEW_TOKENS,
    'sphinx-1k-pool': VIEW_TOKENS + 4 * 97,
    'sphinx-2k': 10 * VIEW_TOKENS,
    'sphinx-light-7b': 257,
    'sphinx-light-1k': 5 * 257,
}


ALL = RELEASED | {folder: RELEASED[name] for folder, name in FOLDERS.items()}
MODELS_OF_CONFIGS = {}


def build(path):
    """A config, and its model: one for all configs that have the same. How a classifier mixes changes no parameter."""
    init_default_scope('mmpretrain')
    cfg = load(path)
    model = cfg.model.to_dict()
    text = repr({key: model[key] for key in ('backbone', 'head')} if 'backbone' in model else model)
    if text not in MODELS_OF_CONFIGS:
        MODELS_OF_CONFIGS[text] = build_weightless(cfg.model, ALL)
    return cfg, MODELS_OF_CONFIGS[text]


def count(module):
    packed = {id(one.weight): one for one in module.modules() if isinstance(one, FourBitLinear)}
    sizes = {id(one): one.numel() for one in module.parameters()}
    return sum((sizes | {key: one.in_features * one.out_features for key, one in packed.items()}).values())


def close(found, name):
    """Whether a number is the published one, as far as its last digit says."""
    value, unit, _ = PUBLISHED[name]
    digit = 0.1 if value == 1.1 else 1 if unit == MILLION else 0.01
    return abs(found / unit - value) < 0.6 * digit


def base_name(cfg):
    """The hub model that the weights of a config go back to."""
    vlm = cfg.model.vlm
    name = vlm.get('pretrained') or vlm.language_model.pretrained
    return FOLDERS.get(name, name)


# Vision-language models.


@parametrize(VLMS)
def test_a_config_builds_at_the_published_size(path):
    cfg, model = build(path)
    assert isinstance(model, BaseTuner) and all(parameter.is_meta for parameter in model.parameters())
    network, name = model.vlm.family.model, base_name(cfg)
    parts = {part.name: part for part in part_sizes(model)}
    assert sum(part.parameters for part in parts.values()) == count(model)
    if cfg.model.vlm.type == 'SphinxModel':
        # The TinyLlama config inherits the backbone from one on Llama 2.
        assert close(count(network.language_model), name)
        for branch in network.vision.backbone.branches:
            kind = type(branch.encoder).__name__
            if kind == 'ConvNeXt':
                # 846.47 million in timm's tables, with a classifier of 1,000 classes.
                assert count(branch.encoder) == pytest.approx(846.47e6 - 3072 * 1000, rel=1e-4)
            else:
                start = dict(CLIPVisionModel='openai/clip-vit-l', Dinov2Model='facebook', Blip2VisionModel='Salesforce')
                (part,) = (part for key, part in start.items() if kind.startswith(key))
                own = next(name for name in RELEASED if part in name)
                assert close(count(branch.encoder), own), own
    elif cfg.model.vlm.get('lora'):
        # The adapters of rank r of a matrix [n, m] have r * (n + m); what trains besides is there twice, in peft's way.
        inner = network.config.text_config
        width, middle, rank = inner.hidden_size, inner.intermediate_size, cfg.model.vlm.lora.r
        adapters = inner.num_hidden_layers * rank * (4 * 2 * width + 3 * (width + middle))
        others = [part for part in cfg.model.vlm.trainable if part != 'language_model']
        copies = sum(parts[part].trained for part in others)
        assert parts['language_model'].trained == adapters
        assert all(parts[part].trained * 2 == parts[part].parameters for part in others)
        assert close(count(model) - adapters - copies, name)
    else:
        assert close(count(model), name)
        for part, size in parts.items():
            assert size.trained == (size.parameters if part in cfg.model.vlm.trainable else 0), part
    # Float32 for what trains, the config's dtype for the rest.
    if cfg.model.vlm.get('dtype') == 'bfloat16':
        packed = {torch.uint8} if cfg.model.vlm.get('quantization_config') else set()
        assert {p.dtype for p in network.parameters() if not p.requires_grad} == {torch.bfloat16} | packed
    assert {p.dtype for p in network.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    'name', [name for name, one in RELEASED.items() if one['model_type'] in tiny_vlms.ALL_FAMILIES]
)
def test_names_and_shapes_are_those_of_the_librarys_own_class(name):
    import transformers

    config = dict(RELEASED[name])
    config = transformers.AutoConfig.for_model(config.pop('model_type'), **config)
    config.tie_word_embeddings = 'Qwen' in name  # Version 5 would tie where a file says nothing.
    with torch.device('meta'):
        own = transformers.AutoModelForImageTextToText.from_config(config)
    expected = {key: value.shape for key, value in own.state_dict().items()}
    kind = dict(janus='JanusModel', emu3='Emu3Model').get(RELEASED[name]['model_type'], 'HFVisionLanguageModel')
    init_default_scope('mmpretrain')
    vlm = build_weightless(dict(type=kind, pretrained=name), RELEASED)
    assert {key: value.shape for key, value in vlm.model.state_dict().items()} == expected
    # Head and embeddings are one weight in Qwen2.5-VL-3B only, as its files are: the number of parameters says it too.
    tied = own.get_output_embeddings().weight is own.get_input_embeddings().weight
    assert tied == (vlm.head.weight is vlm.family.base.get_input_embeddings().weight) == ('Qwen' in name)


def test_sphinx_reads_5632_channels_of_three_encoders_and_the_queries_of_a_fourth():
    cfg = load(next(path for path in VLMS if path.stem.startswith('sphinx-7b_16')))
    model = build_weightless(cfg.model, ALL)
    vision = model.vlm.family.model.vision
    assert sum(vision.neck.in_channels) == CHANNELS
    memory = StepMemory()
    memory.adopt_module(vision)
    with memory, torch.no_grad():
        maps = vision.backbone(memory.empty(1, 3, 224, 224))
    *maps, queries = maps
    assert sum(one.features.size(1) for one in maps) == CHANNELS and queries.shape == (1, 32, 768)


@parametrize([path for path in VLMS if '-coslr-' in path.stem])
def test_an_image_has_as_many_tokens_as_the_model_makes_of_it(path):
    cfg, model = build(path)
    image = image_input(cfg, model.vlm)
    kind = max((key for key in IMAGE_TOKENS if path.stem.startswith(key)), key=len)
    assert image.num_tokens == IMAGE_TOKENS[kind]
    if cfg.model.vlm.type == 'SphinxModel':
        length = model.vlm.family.model.vision.num_views * 2 + image.num_tokens
        assert len(image.ids) == length
        # The first lines of these two say it; those of the others have it from their base.
        assert not path.stem.startswith(('sphinx-1k', 'sphinx-2k')) or f'{length:,} tokens an image' in path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    'start', ['llava-v1.5-7b_8xb16-sft', 'qwen2.5-vl-3b_8xb16-sft', 'janus-pro-1b_8xb16-ntp', 'sphinx-1k-pool-7b']
)
def test_the_model_takes_a_batch_of_its_image_tokens(start):
    # Through the library's own check of the number of features, at full width.
    cfg = load(next(path for path in VLMS if path.stem.startswith(start)))
    cfg.train_dataloader.batch_size = 2
    model = build_weightless(cfg.model, ALL)
    memory = StepMemory()
    memory.adopt_module(model)
    model.eval()
    with memory, torch.no_grad():
        inputs = training_batches(cfg, model, memory, text_tokens=4)['und']()['inputs']
        hidden = model.vlm.hidden(model.vlm.prepare(inputs))
    width = model.vlm.family.base.get_input_embeddings().embedding_dim
    assert hidden.shape == (*inputs['input_ids'].shape, width)
    assert int(model.vlm.family.placeholders(inputs).sum()) == 2 * image_input(cfg, model.vlm).num_tokens


def image_tokens(processor, family, image):
    ids = processor(images=[image], text=[tiny_vlms.image_text(family)], return_tensors='pt')['input_ids']
    return int((ids == tiny_vlms.token_id(family, tiny_vlms.feature_token(family))).sum())


def test_the_librarys_processors_write_as_many_tokens():
    import transformers

    clip = transformers.CLIPImageProcessor(size=dict(shortest_edge=336), crop_size=dict(height=336, width=336))
    llava = transformers.LlavaProcessor(
        image_processor=clip,
        tokenizer=tiny_vlms.tiny_tokenizer('llava'),
        patch_size=14,
        vision_feature_select_strategy='default',
        num_additional_image_tokens=1,
    )
    assert image_tokens(llava, 'llava', tiny_vlms.random_image(480, 640, 0)) == IMAGE_TOKENS['llava']

    qwen = tiny_vlms.tiny_processor('qwen2_5_vl')
    limits = dict(shortest_edge=56 * 56, longest_edge=1280 * 28 * 28)
    qwen.image_processor.size, qwen.image_processor.max_pixels = limits, limits['longest_edge']
    # 32 x 40 blocks of 28 pixels: the largest image that the config lets through.
    assert image_tokens(qwen, 'qwen2_5_vl', tiny_vlms.random_image(3200, 4000, 0)) == IMAGE_TOKENS['qwen2.5']

    janus = tiny_vlms.tiny_processor('janus')
    janus.num_image_tokens = 576
    assert image_tokens(janus, 'janus', tiny_vlms.random_image(384, 384, 0)) == IMAGE_TOKENS['janus']


# Classifiers.


def published_classifiers():
    """MMPretrain's own tables: name of a config -> parameters, with 1,000 classes."""
    found = {}
    for folder in ('deit', 'vision_transformer', 'convnext'):
        path = f'{get_installed_path("mmpretrain")}/.mim/configs/{folder}/metafile.yml'
        with open(path) as file:
            models = yaml.safe_load(file)['Models']
        found |= {model['Name']: model['Metadata']['Parameters'] for model in models}
    return found


# As DeiT's in MMPretrain: ViT-B and ViT-L at 224 px, the large one from the table of 384 px.
ARCHS = {
    'deit-tiny': 'deit-tiny_4xb256_in1k',
    'deit-small': 'deit-small_4xb256_in1k',
    'deit-base': 'deit-base_16xb64_in1k',
    'base': 'vit-base-p16_32xb128-mae_in1k',
    'large': 'vit-large-p16_in21k-pre_3rdparty_in1k-384px',
}


@parametrize(CLASSIFIERS)
def test_a_classifier_has_the_published_size_but_for_its_classes(path):
    cfg, model = build(path)
    backbone = cfg.model.backbone
    if backbone.arch == 'small':  # MMPretrain's own ViT-S of 8 layers, of which there is no table.
        assert path.stem.startswith('vit-small') and len(model.backbone.layers) == 8
        return
    width = cfg.model.head.in_channels
    expected = published_classifiers()[ARCHS[backbone.arch]]
    expected -= (1000 - cfg.model.head.num_classes) * (width + 1)
    if backbone.arch == 'large':
        expected -= ((384 // 16) ** 2 - (224 // 16) ** 2) * width  # Places of patches.
    assert count(model) == expected
    assert math.prod(model.backbone.pos_embed.shape) == ((224 // 16) ** 2 + 1) * width
