"""Writes models of every family, adapters, SPHINX and vision encoders as one version of transformers has them.

To be run once under each version: ``PYTHONPATH=. python tests/transformers_versions/write_models.py``. It leaves an
archive ``transformers4.57.tar.xz`` beside itself, which tests/test_models/test_files_of_versions.py reads under every
version: folders, checkpoints as MMEngine writes them, and ``said.pth``, what the library's own forward made of them.
"""

import sys
import tarfile
import tempfile
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import tiny_sphinx  # noqa: E402
import tiny_vlms  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402
from write_weights import ENCODERS, encoder  # noqa: E402

from mergemix_mm.models.backbones.encoder_branch import EncoderBranch  # noqa: E402
from mergemix_mm.models.vlms.hf.saving import save_processor  # noqa: E402

IMAGES = [tiny_vlms.random_image(40, 56, seed) for seed in range(2)]
SAMPLES = [([IMAGES[0]], 'what is it?', ' that'), ([IMAGES[1]], 'a b', ' c d')]
# Encoders whose config a folder of SPHINX can say, and which come without weights of their own.
SPHINX_ENCODERS = ('CLIPVisionModel', 'SiglipVisionModel', 'Dinov2Model', 'Dinov2WithRegistersModel')


def tuner(family, **options):
    config = tiny_vlms.tiny_config(family)
    # No version's default.
    config['text_config'] |= dict(rope_theta=500.0)
    vlm = dict(type='HFVisionLanguageModel', config=config, **options)
    return MODELS.build(dict(type='VLMTuner', vlm=vlm)).eval()


def parts(family):
    return ['language_model'] if family == 'emu3' else ['vision_tower', 'projector', 'language_model']


@torch.no_grad()
def fill(model):
    """Weights that every dtype holds exactly and an archive holds in few bytes, another pattern for each."""
    for index, (name, value) in enumerate(model.state_dict().items()):
        if 'smolvlm' in str(getattr(getattr(model, 'vlm', None), 'family', '')).lower() and 'position_emb' in name:
            # All positions alike: in float32, version 4 takes each patch for the one before it.
            value.copy_(value[:1].bfloat16())
        elif value.is_floating_point() and value.numel() > 64:
            steps = (torch.arange(value.numel()) * (2 * index + 1) + 13 * index) % 251 - 125
            value.copy_((steps / 512).reshape(value.shape))
        elif value.is_floating_point():
            value.copy_(value.bfloat16())
    return model


@torch.no_grad()
def said(model, family, batch):
    """Logits [B, L, some of V], as the library's own forward has them."""
    inputs = {key: value for key, value in batch.items() if key != 'original_sizes'}
    if family == 'emu3':  # Its model with head drops the images.
        inputs.pop('labels')
        logits = model.lm_head(model.model(**inputs).last_hidden_state)
    else:
        logits = model(**inputs).logits
    return logits[..., ::50].clone()


def write_family(family, out):
    torch.manual_seed(0)
    batch = tiny_vlms.tiny_batch(family, SAMPLES)
    model = fill(tuner(family))
    weights = {
        name: value.to(torch.bfloat16 if value.is_floating_point() else value.dtype)
        for name, value in model.state_dict().items()
    }
    torch.save(dict(meta={}, state_dict=weights), out / f'{family}.pth')
    model.vlm.save_pretrained(out / family, dtype='bfloat16')
    save_processor(tiny_vlms.tiny_processor(family), out / family)
    found = dict(batch=batch, logits=said(model.vlm.model, family, batch))
    adapted = fill(tuner(family, trainable=parts(family), lora=dict(r=2)))
    torch.save(dict(meta={}, state_dict=adapted.state_dict()), out / f'{family}-lora.pth')
    adapted.vlm.save_pretrained(out / f'{family}-lora')
    # Their base is the folder: what does not train is as there.
    base = tuner(family).vlm.model
    base.load_state_dict(model.vlm.model.state_dict())
    names = adapted.vlm.model.state_dict()
    trained = {name: value for name, value in names.items() if 'lora_' in name or 'modules_to_save' in name}
    names.update({name: value for name, value in _of_base(base, names).items() if name not in trained})
    found['lora_logits'] = said(adapted.vlm.family.model, family, batch)
    adapted.vlm.model.load_state_dict(names)
    found['lora_on_base_logits'] = said(adapted.vlm.family.model, family, batch)
    return found


def _of_base(base, names):
    """The weights of a model under the names that they have inside of peft's."""
    plain = {name.replace('base_model.model.', '', 1).replace('.base_layer', ''): name for name in names}
    plain = {name.replace('.original_module', ''): full for name, full in plain.items()}
    return {plain[name]: value for name, value in base.state_dict().items()}


def sphinx(trainable=('language_model', 'projector', 'vision_tower')):
    small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=14, patch_size=7)
    kinds = dict(CLIPVisionModel='clip_vision_model', SiglipVisionModel='siglip_vision_model', Dinov2Model='dinov2')
    kinds['Dinov2WithRegistersModel'] = 'dinov2_with_registers'
    branches = [
        dict(
            encoder=dict(
                type=f'transformers.{name}._from_config',
                config=dict(model_type=kinds[name], **small, **ENCODERS[name][1]),
            ),
            input_size=14,
            frozen=False,
        )
        for name in SPHINX_ENCODERS
    ]
    config = tiny_sphinx.sphinx_config(trainable=list(trainable))
    config['backbone']['encoders'] = branches
    config['neck'] |= dict(in_channels=[8] * len(branches), grid=2)
    return config


def write_sphinx(out):
    torch.manual_seed(0)
    model = fill(MODELS.build(dict(type='VLMTuner', vlm=sphinx()))).eval()
    torch.save(dict(meta={}, state_dict=model.state_dict()), out / 'sphinx.pth')
    model.vlm.save_pretrained(out / 'sphinx')
    batch = tiny_sphinx.batch(tiny_sphinx.processor(), [(IMAGES[:1], 'what?', 'a'), ([], 'hello', 'you')])['inputs']
    with torch.no_grad():
        return dict(batch=batch, logits=model.vlm.head(model.vlm.hidden(batch))[..., ::50].clone())


def write_encoder(name, out):
    torch.manual_seed(0)
    model = fill(encoder(name)).eval()
    model.save_pretrained(out / name)
    branch = EncoderBranch(model)
    torch.save(branch.state_dict(), out / f'{name}.pth')
    pixels = torch.linspace(-2, 2, 3 * 14 * 14).view(1, 3, 14, 14).sin()
    with torch.no_grad():
        found = dict(pixels=pixels, states=model(pixel_values=pixels).last_hidden_state)
        return found if 'Projection' in name else found | dict(map=branch(pixels).features)


def main():
    version = '.'.join(transformers.__version__.split('.')[:2])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        found = {family: write_family(family, out) for family in tiny_vlms.ALL_FAMILIES}
        found['sphinx'] = write_sphinx(out)
        found |= {name: write_encoder(name, out) for name in ENCODERS}
        torch.save(found, out / 'said.pth')
        with tarfile.open(HERE / f'transformers{version}.tar.xz', 'w:xz') as archive:
            for path in sorted(out.iterdir()):
                archive.add(path, path.name)


if __name__ == '__main__':
    main()
