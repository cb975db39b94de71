"""The documentation: code and configs run, links lead somewhere, the site builds, and no component is left out."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType

import mmengine.registry
import mmpretrain.registry
import pytest
import small_data
import tiny_sphinx
import tiny_vlms
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, Registry, init_default_scope
from mmengine.runner import Runner
from repository_configs import quick_mmengine, runner_of_two_steps, without_strategy  # noqa: F401
from torch import nn

import mergemix_mm
import mergemix_mm.missing_ops  # MMDetection's models are built here, with or without compiled ops.
from mergemix_mm.families import FAMILIES
from mergemix_mm.models.vision_encoders import ADAPTERS, build_vision_encoder, run_layers
from mergemix_mm.models.vlms import HFVisionLanguageModel

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(page for page in (ROOT / 'docs').rglob('*.md') if '_build' not in page.parts)
READMES = sorted(path for part in ('configs', 'projects') for path in (ROOT / part).glob('*/README.md'))
PAGES = [ROOT / 'README.md', *DOCS, *READMES]
BLOCK = re.compile(r'^```python\n(.*?)^```', re.MULTILINE | re.DOTALL)
# Configs that a page gives as a whole: they inherit loaders and schedule. Each once, under the last page that has it.
COMPLETE = {
    match[1]: f'{page.relative_to(ROOT)}:{page.read_text()[: match.start()].count(chr(10)) + 1}'
    for page in PAGES
    for match in BLOCK.finditer(page.read_text())
    if '_base_ =' in match[1]
}
WITH_CODE = [
    page
    for page in [ROOT / 'README.md', *DOCS, *(ROOT / 'configs').glob('*/README.md')]
    if any('_base_ =' not in block for block in BLOCK.findall(page.read_text()))
]


def name_of(path):
    return str(path.relative_to(ROOT))


def on(pages):
    return pytest.mark.parametrize('page', pages, ids=name_of)


# Complete configs: pasted into a file, they train. What changes is their size, and where hub weights come from.


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A folder with the data that the pages ask for."""
    folder = tmp_path_factory.mktemp('home')
    small_data.draw(folder / 'one.jpeg', 0)
    for i in range(1000):
        path = folder / f'data/imagenet/train/n{i:08d}/one.JPEG'
        path.parent.mkdir(parents=True)
        path.symlink_to(folder / 'one.jpeg')
    small_data.write_llava(folder / 'data/LLaVA-Tuning/llava_v1_5_mix665k.json', '{:04d}.png', 4)
    small_data.write_llava(folder / 'data/mine/conversations.json', '{:04d}.png', 4)
    prompts = [dict(prompt=f'ring {i}', image=f'../mine/{i:04d}.png') for i in range(4)]
    small_data.write_lines(folder / 'data/text-to-image/train.jsonl', prompts)
    small_data.write_lines(folder / 'data/mine/prompts.jsonl', prompts)
    captions = [dict(caption=f'ring {i}', image=f'{i:04d}.png') for i in range(4)]
    small_data.write_lines(folder / 'data/mine/captions.jsonl', captions)
    return folder


# Models of the hub -> small ones of the same kind, as wide as the parts beside them expect.
JANUS = tiny_vlms.tiny_config('janus')
JANUS['vision_config'].update(
    image_size=48, patch_size=2, num_image_tokens=576
)  # The processor's class knows no other.
JANUS['text_config'].update(num_hidden_layers=3)  # A layer in each stage of targets.
LLAMA = dict(model_type='llama', hidden_size=2048, intermediate_size=64, num_hidden_layers=1, num_attention_heads=8)
CLIP = dict(model_type='clip_vision_model', hidden_size=768, intermediate_size=64, num_hidden_layers=2)
DINOV2 = dict(model_type='dinov2', hidden_size=384, num_hidden_layers=1, num_attention_heads=6, mlp_ratio=1)
HUB = {
    'llava-hf/llava-1.5-7b-hf': tiny_vlms.tiny_config('llava'),
    'deepseek-community/Janus-Pro-1B': JANUS,
    'TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T': dict(LLAMA, vocab_size=32000, tie_word_embeddings=True),
    'openai/clip-vit-base-patch32': dict(CLIP, num_attention_heads=8, image_size=224, patch_size=32),
    'facebook/dinov2-small': dict(DINOV2, image_size=224, patch_size=14),
}


@pytest.fixture(scope='module')
def stand_in(tmp_path_factory):
    """stand_in(name) -> a folder that `from_pretrained` reads as it would read the model of the hub."""

    @cache
    def save(name):
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

        folder, config = tmp_path_factory.mktemp('hub'), HUB[name]
        kind = config['model_type']
        torch.manual_seed(0)
        if kind in ('llava', 'janus'):
            HFVisionLanguageModel(config=config).save_pretrained(folder)
            processor = tiny_vlms.tiny_processor(kind)
            if kind == 'janus':
                processor.image_processor.size, processor.num_image_tokens = dict(height=48, width=48), 576
            processor.save_pretrained(folder)
        elif kind == 'llama':
            AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
            tiny_sphinx.tokenizer().save_pretrained(folder)
            content = json.loads((folder / 'tokenizer.json').read_text())
            words = content['model']['vocab']
            words.update({f'<{i}>': i for i in range(len(words), config['vocab_size'])})
            (folder / 'tokenizer.json').write_text(json.dumps(content))
        else:
            AutoModel.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
        return str(folder)

    return save


def nodes(part):
    """Every dict of a config."""
    if isinstance(part, dict):
        yield part
    for entry in part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ():
        yield from nodes(entry)


def without_downloads(cfg, stand_in):
    """Hub weights come from folders; weights of timm and checkpoints on the web are random instead."""
    for node in nodes(cfg._cfg_dict):
        for key, value in node.items():
            if isinstance(value, str) and value in HUB:
                node[key] = stand_in(value)
        if node.get('type') == 'timm.create_model':
            node['pretrained'] = False
        if isinstance(node.get('init_cfg'), dict) and node['init_cfg'].get('type') == 'Pretrained':
            node['init_cfg'] = None
    return cfg


def two_samples(cfg):
    """Two steps of two samples in one process, without validation."""
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    if 'batch_size' in cfg.train_dataloader.get('sampler', {}):
        cfg.train_dataloader.sampler.batch_size = 2
    for node in nodes(cfg.train_dataloader):
        node.update(dict(num_train=4, num_val=2) if node.get('type') == 'ShapesCocoDataset' else {})
        node.update({key: 4 for key in ('length',) if key in node})
    if (cfg.model.get('mixer') or {}).get('num_merge'):
        cfg.model.mixer.num_merge = None  # Of 576 patches in the config; the small model has 16.
    cfg.train_cfg = dict(by_epoch=False, max_iters=2)
    for key in ('val', 'test'):
        cfg[f'{key}_dataloader'] = cfg[f'{key}_cfg'] = cfg[f'{key}_evaluator'] = None
    return cfg


def build_model(cfg):
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    # As Runner does: MMPretrain's classifiers take the preprocessor of the config.
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return MODELS.build(cfg.model)


@pytest.mark.parametrize('block', COMPLETE, ids=COMPLETE.values())
def test_a_config_pasted_into_a_file_trains(block, home, stand_in, tmp_path, monkeypatch):
    if 'mmdet::' in block or 'transfer/' in block:
        pytest.importorskip('mmdet', reason="needs MMDetection: pip install -e '.[detection]'")
    monkeypatch.chdir(home)
    path = tmp_path / 'my_config.py'
    path.write_text(block)
    cfg = Config.fromfile(path)
    assert {'model', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'default_scope'} <= set(cfg)
    cfg = without_downloads(cfg, stand_in)
    if cfg.train_dataloader.dataset.type in ('CIFAR100', 'CocoDataset'):  # The real ones would have to be there.
        assert isinstance(build_model(cfg), nn.Module)
        return
    runner = runner_of_two_steps(without_strategy(two_samples(cfg)), tmp_path, monkeypatch)
    runner.train()
    losses = runner.message_hub.log_scalars['train/loss'].data[0]
    assert runner.iter == 2 and all(map(torch.isfinite, map(torch.tensor, losses)))


@pytest.mark.parametrize('method', ['mergemix', 'mixing_rivals', 'mixed_simpo', 'aia', 'sphinx'])
def test_every_method_has_a_complete_config_without_downloads(method):
    blocks = BLOCK.findall((ROOT / f'docs/methods/{method}.md').read_text())
    assert any('config_path' in block and not any(name in block for name in HUB) for block in blocks)


# Code, and parts of configs.


def is_part(block):
    """Whether a block is a part of a config: only assignments, and one of the keys that only configs have."""
    statements = ast.parse(block).body
    if not all(isinstance(one, ast.Assign) for one in statements):
        return False
    return not {ast.unparse(one.targets[0]) for one in statements}.isdisjoint({'custom_imports', 'model'})


def run_page(page, folder, stand_in=None):
    """Run the blocks of a page, in order and in one namespace; the models and loaders of parts of configs are built."""
    space = ModuleType(page.stem)
    for match in BLOCK.finditer(page.read_text()):
        line = page.read_text()[: match.start()].count('\n') + 1
        if '_base_ =' in match[1]:
            continue
        if is_part(match[1]):
            path = folder / 'part.py'
            path.write_text(match[1])
            cfg = without_downloads(Config.fromfile(path), stand_in)
            assert cfg.get('model') or cfg.get('train_dataloader')
            if 'model' in cfg:
                assert isinstance(build_model(cfg), nn.Module)
            if 'train_dataloader' in cfg:
                assert next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
        else:
            # Empty lines before the block, so that a traceback has the lines of the page.
            exec(compile('\n' * line + match[1], str(page), 'exec'), space.__dict__)
    return space


@pytest.fixture
def leave_no_trace(monkeypatch, tmp_path):
    """A page runs in an empty folder, and what it registers is gone after it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tables = (ADAPTERS, FAMILIES, TRANSFORMS.module_dict)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before):
        table.clear()
        table.update(entries)


@on(WITH_CODE)
def test_the_code_of_a_page_runs(page, tmp_path, stand_in, leave_no_trace):
    run_page(page, tmp_path, stand_in)


def test_get_started_mixes_images_and_prefers_an_answer(tmp_path, leave_no_trace):
    space = run_page(ROOT / 'docs/get_started.md', tmp_path)
    assert (tmp_path / 'mixed.png').exists()
    kept = space.result.mask.view(4, 1, 14, 14).repeat_interleave(16, 2).repeat_interleave(16, 3)
    own = torch.where(kept, space.result.images == space.images / 127.5 - 1, True)
    assert own.all() and not kept.all()
    margin = 2.0 * (space.chosen - space.rejected) - 0.5
    torch.testing.assert_close(space.loss, -nn.functional.logsigmoid(margin)[None])


def test_the_adapter_that_is_shown_computes_what_the_library_does(tmp_path, leave_no_trace):
    space = run_page(ROOT / 'docs/extend/custom_encoder.md', tmp_path)
    model, images = space.encoder.eval(), torch.randn(2, 3, 32, 32)
    nn.init.normal_(model.heads.head.weight)
    parts = build_vision_encoder(model)
    tokens, grid = parts.embed(images)
    for tokens, _ in run_layers(parts.layers, tokens, [0] * 4, 1, True):
        pass
    torch.testing.assert_close(model.heads(parts.finish(tokens)[:, 0]), model(images))
    assert grid == (4, 4) and space.result.saliency.shape == (4, 16)


def test_the_family_that_is_shown_trains_with_mixed_simpo(tmp_path, leave_no_trace):
    space = run_page(ROOT / 'docs/extend/custom_vlm.md', tmp_path)
    (space.losses['loss_sft'] + space.losses['loss_simpo']).backward()
    assert space.tuner.vlm.head.weight.grad.abs().sum() > 0
    assert space.tuner.vlm.modality(space.batch).tolist()[0] == [1, 2, 2, 2, 2, 1, 1, 1]


# Words.

# Idioms that the house rules replace: should, after, not a, silently.
IDIOMS = re.compile(r'.*\b(?:shall|behind|is no|are no|as there|without a word|whoever) .*', re.IGNORECASE)


def prose_of(page):
    """A page without its code."""
    return re.sub(r'`[^`\n]+`', '', re.sub(r'^```.*?^```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL))


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text().split()) <= 900


@on(PAGES)
def test_cells_of_tables_are_short_and_words_are_plain(page):
    rows = [line for line in page.read_text().split('\n') if line.startswith('|')]
    cells = [re.sub(r'\]\([^)]*\)', ']', cell) for row in rows for cell in re.split(r'(?<!\\)\|', row)]
    assert not [cell for cell in cells if len(cell.split()) > 20]
    assert not IDIOMS.findall(prose_of(page))


def test_a_cell_about_a_release_names_the_file_that_it_was_read_in():
    before_sphinx = (ROOT / 'docs/fidelity.md').read_text().split('\n## SPHINX')[0]
    named = re.compile(r'`[\w/]+\.(py|md)`|of the configs\)|\(note \d+\)|^(-|no code for .*)$')
    columns, cells = {}, []
    for line in before_sphinx.split('\n'):
        row = [cell.strip() for cell in line.split('|')[1:-1]]
        if {'OpenMixup', 'LLaVA fork', 'released code', 'port', 'LLaVA-v1.5'} & set(row):
            columns = {i for i, name in enumerate(row) if name not in ('definition', 'paper', 'method', 'this project')}
        elif not row:
            columns = set()
        elif not row[0].startswith(':--'):
            cells += [row[i] for i in columns]
    assert len(cells) > 60
    assert not [cell for cell in cells if not named.search(cell)]


# Links and names.

LINK = re.compile(r'\]\(([^)\s]+)\)')
HEADING = re.compile(r'^#+ (.+)$', re.MULTILINE)


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    without_code = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
    names, seen = set(), Counter()
    for heading in HEADING.findall(without_code):
        heading = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading)
        name = re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
        names.add(f'{name}-{seen[name]}' if seen[name] else name)
        seen[name] += 1
    return names


@on(PAGES)
def test_every_relative_link_of_a_page_leads_to_a_file_and_its_anchor_to_a_heading(page):
    for link in LINK.findall(prose_of(page)):
        if re.match(r'https?:', link):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.is_file() and target.is_relative_to(ROOT), f'{link} leads nowhere'
        assert not anchor or anchor in anchors(target), f'{link}: no such heading; {sorted(anchors(target))}'


def test_paths_of_this_repository_that_a_page_names_exist():
    for page in PAGES:
        for path in re.findall(
            r'(?<![\w/.-])((?:tools|configs|tests|projects|mergemix_mm)/[\w./+-]+\.(?:py|sh|md))', page.read_text()
        ):
            assert (ROOT / path).exists() or (page.parent / path).exists(), f'{page.name}: {path}'


def test_every_make_target_that_a_page_names_is_one_that_make_help_lists():
    listed = set(re.findall(r'^([a-z-]+):.*## ', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r'(?:`|^)make ([a-z-]+)', page.read_text(), re.MULTILINE)}
    assert {'demo', 'test', 'gallery'} <= named <= listed


def test_pages_and_the_makefile_name_the_versions_that_the_requirements_allow():
    lines = [line for path in (ROOT / 'requirements').glob('*.txt') for line in path.read_text().split('\n')]
    ranges = dict(match.groups() for line in lines if (match := re.match(r'(torch|transformers)(>=.+)', line)))
    assert ranges.keys() == {'torch', 'transformers'}
    for page in PAGES:
        for name, found in re.findall(r'\b(torch|transformers)(>=[\d.,<=]+)', page.read_text()):
            assert found == ranges[name], f'{page.name}: {name}{found}'
    makefile, metadata = (ROOT / 'Makefile').read_text(), (ROOT / 'pyproject.toml').read_text()
    for name, found in ranges.items():
        low, high = re.fullmatch(r'>=([\d.]+),(<[\d.]+)', found).groups()
        assert re.search(rf'_oldest := .*{name}[=>]={re.escape(low)}', makefile)
        assert re.search(rf'_newest := .*{name}>=[\d.]+,{re.escape(high)}\'', makefile)
    assert {f'3.{minor}' for minor in range(10, 15)} == set(re.findall(r'python(3\.\d+)', makefile))
    assert '">=3.10,<3.15"' in metadata
    assert {f'3.{minor}' for minor in range(10, 15)} == set(re.findall(r'Python :: (3\.\d+)', metadata))
    assert all(
        '3.10 to 3.14' in (ROOT / page).read_text() for page in ('README.md', 'docs/get_started.md', 'docs/faq.md')
    )


# The site.


def documented():
    """The objects that the API reference takes from the modules it names."""
    found = []
    for page in (ROOT / 'docs/api').glob('*.md'):
        for name in re.findall(r'automodule:: (\S+)', page.read_text()):
            module = importlib.import_module(name)
            names = getattr(module, '__all__', [name for name in vars(module) if not name.startswith('_')])
            found += [getattr(module, name) for name in names]
    return found


def registered():
    """Name -> object of everything that the package registers."""
    registries = {id(one): one for source in (mmengine.registry, mmpretrain.registry) for one in vars(source).values()}
    return {
        name: obj
        for registry in registries.values()
        if isinstance(registry, Registry)
        for name, obj in registry.module_dict.items()
        if obj.__module__.startswith(f'{mergemix_mm.__name__}.')
    }


def test_the_api_reference_has_everything_that_is_registered():
    objects = documented()
    names = {obj.__name__ for obj in objects if hasattr(obj, '__name__')}
    assert {'MergeMix', 'SphinxModel', 'AIAHook', 'ConversationCollate'} <= {*registered()}
    assert not {name for name, obj in registered().items() if name not in names and obj not in objects}


# Of Sphinx' own interfaces, which its extensions use.
@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::PendingDeprecationWarning')
def test_the_site_builds_without_a_warning_and_its_pages_fit_a_phone(tmp_path, monkeypatch, capfd):
    pytest.importorskip('myst_parser', reason='make docs installs what builds the site')
    from sphinx.cmd.build import build_main

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, 'path', [*sys.path])  # The settings of the site extend it.
    code = build_main(['-q', '-E', '-W', '-b', 'html', '-c', 'docs', '.', str(tmp_path / 'site')])
    assert code == 0, capfd.readouterr().err[-3000:]

    browser = shutil.which('chromium') or shutil.which('google-chrome')
    if browser is None:
        pytest.skip('the site was built, and there is no browser to measure it with')
    pages = [*(tmp_path / 'site/docs').rglob('*.html'), *(tmp_path / 'site/configs').rglob('*.html')]
    frames = ''.join(f'<iframe src="{path.as_uri()}" style="width: 390px"></iframe>' for path in pages)
    frame = tmp_path / 'frames.html'
    frame.write_text(f'<!doctype html><body>{frames}<script>{MEASURE}</script>')
    command = [browser, '--headless', '--no-sandbox', '--disable-gpu', '--allow-file-access-from-files']
    command += ['--virtual-time-budget=60000', '--dump-dom', f'--user-data-dir={tmp_path / "profile"}', frame.as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    overflows = dict(re.findall(r'<p>(\S+) (\d+)</p>', dumped))
    assert len(overflows) == len(pages) and not {page: pixels for page, pixels in overflows.items() if int(pixels)}


# Replaces the frames by a line each: the address of a page, and by how many pixels its content overflows. The theme
# hides what overflows the window, and lets the content scroll sideways as a whole instead.
MEASURE = """
addEventListener('load', () => setTimeout(() => {
  const lines = [...document.querySelectorAll('iframe')].map((frame) => {
    const content = frame.contentDocument.querySelector('.content');
    return `<p>${frame.src} ${content.scrollWidth - content.clientWidth}</p>`;
  });
  document.body.innerHTML = lines.join('');
}, 2000));
"""
