"""Writes weights and names of both versions of transformers, for tests/test_models/test_weight_names.py.

To be run once under each version, first under 4: ``python tests/transformers_versions/write_weights.py FOLDER``. The
first run leaves in FOLDER what the second one compares: which weight got which name is told by what transformers 5
itself makes of the folders that transformers 4 wrote.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import tiny_vlms  # noqa: E402

from mergemix_mm.models.vlms import HFVisionLanguageModel  # noqa: E402
from mergemix_mm.models.vlms.hf.saving import save_processor  # noqa: E402

SMALL = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=14, patch_size=7)
MLP = dict(intermediate_size=16)
# Class, config, options. The released DINOv2-giant has a SwiGLU.
ENCODERS = {
    'CLIPVisionModel': ('CLIPVisionConfig', MLP),
    'CLIPVisionModelWithProjection': ('CLIPVisionConfig', MLP | dict(projection_dim=4)),
    'SiglipVisionModel': ('SiglipVisionConfig', MLP),
    'Dinov2Model': ('Dinov2Config', dict(use_swiglu_ffn=True)),
    'Dinov2WithRegistersModel': ('Dinov2WithRegistersConfig', {}),
    'DINOv3ViTModel': ('DINOv3ViTConfig', MLP),
    'ViTModel': ('ViTConfig', MLP),
}
VLMS = ('llava', 'paligemma')


def encoder(name):
    config, options = ENCODERS[name]
    return getattr(transformers, name)(getattr(transformers, config)(**SMALL, **options))


def vlm(family, **options):
    return HFVisionLanguageModel(config=tiny_vlms.tiny_config(family), **options)


def inputs():
    """A batch of LLaVA that needs no processor."""
    ids = torch.arange(10, 34)[None].repeat(2, 1)
    ids[:, 3:19] = tiny_vlms.token_id('llava', '<image>')
    pixels = torch.linspace(-2, 2, 2 * 3 * 28 * 28).view(2, 3, 28, 28).sin()
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)


def write_llava(version):
    """A checkpoint as MMEngine writes it, the folder of the same model, what the model says, and a processor."""
    torch.manual_seed(int(version))
    model = vlm('llava', dtype='bfloat16', trainable=[]).eval()
    folder = HERE / f'transformers{version}'
    folder.mkdir(exist_ok=True)
    weights = {f'vlm.{name}': value for name, value in model.state_dict().items()}
    torch.save(dict(meta=dict(), state_dict=weights), folder / 'llava.pth')
    model.save_pretrained(folder / 'llava')
    with torch.no_grad():
        logits = model.float().head(model.hidden(inputs()))[:, -1, ::50]
    (folder / 'llava.json').write_text(json.dumps(logits.tolist()))
    save_processor(tiny_vlms.tiny_processor('internvl'), folder / 'internvl')


def write_folders(out):
    """Under transformers 4: models with other weights each, and their names."""
    for name in (*ENCODERS, *VLMS):
        model = vlm(name).model if name in VLMS else encoder(name)
        for value in model.state_dict().values():
            value.copy_(torch.randn(value.shape))
        model.save_pretrained(out / name)
        torch.save(model.state_dict(), out / f'{name}.pth')


def write_names(out):
    """Under transformers 5: the names of both versions, weight by weight."""
    names = {}
    for name in (*ENCODERS, *VLMS):
        auto = transformers.AutoModelForImageTextToText if name in VLMS else getattr(transformers, name)
        new = auto.from_pretrained(out / name).state_dict()
        pairs = []
        for old, value in torch.load(out / f'{name}.pth').items():
            same = [key for key, found in new.items() if found.shape == value.shape and torch.equal(found, value)]
            if not same:  # Split in two.
                pieces = [
                    [key for key, found in new.items() if found.shape == half.shape and torch.equal(found, half)]
                    for half in value.chunk(2)
                ]
                same = [[name for names in pieces for name in names]]
            pairs.append([old, *([old] if old in same else same[:1])])
        names[name] = pairs
    text = ',\n'.join(f'{json.dumps(name)}: {json.dumps(pairs)}' for name, pairs in names.items())
    (HERE / 'weight_names.json').write_text('{\n' + text + '\n}\n')


if __name__ == '__main__':
    major, out = transformers.__version__.split('.')[0], Path(sys.argv[1])
    write_llava(major)
    write_folders(out) if major == '4' else write_names(out)
