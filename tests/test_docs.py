"""The documentation: its Python blocks run, its links lead somewhere, its site builds, and no component is left out."""

import ast
import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import mmengine.registry
import mmpretrain.registry
import pytest
import tiny_vlms
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, METRICS, MODELS, TRANSFORMS, Registry, init_default_scope
from mmengine.runner import Runner
from torch import nn

import mergemix_mm
import mergemix_mm.missing_ops  # MMDetection's models are built here, with or without compiled ops.
from mergemix_mm.families import FAMILIES
from mergemix_mm.models.vision_encoders import ADAPTERS, build_vision_encoder, run_layers

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / 'docs').rglob('[!_]*.md'))
READMES = sorted(path for part in ('configs', 'projects') for path in (ROOT / part).glob('*/README.md'))
PAGES = [ROOT / 'README.md', *DOCS, *READMES]
BLOCK = re.compile(r'^```python\n(.*?)^```', re.MULTILINE | re.DOTALL)
WITH_CODE = [page for page in [ROOT / 'README.md', *DOCS] if BLOCK.search(page.read_text())]
# Models of the hub -> configs of the same kind with random weights, as wide where another part depends on the width.
STAND_INS = {
    'llava-hf/llava-1.5-7b-hf': tiny_vlms.tiny_config('llava'),
    'deepseek-community/Janus-Pro-1B': tiny_vlms.tiny_config('janus'),
    'TinyLlama/TinyLlama-1.1B-Chat-v1.0': dict(model_type='llama', vocab_size=32004, hidden_size=2048)
    | dict(intermediate_size=64, num_hidden_layers=1, num_attention_heads=8),
    'openai/clip-vit-base-patch32': dict(model_type='clip_vision_model', hidden_size=768, intermediate_size=64)
    | dict(num_hidden_layers=1, num_attention_heads=8, image_size=224, patch_size=32),
    'facebook/dinov2-small': dict(model_type='dinov2', hidden_size=384, mlp_ratio=1, num_hidden_layers=1)
    | dict(num_attention_heads=6, image_size=224, patch_size=14),
}


def name_of(path):
    return str(path.relative_to(ROOT))


def on(pages):
    return pytest.mark.parametrize('page', pages, ids=name_of)


# Code.


def is_config(block):
    """Whether a block is a config: assignments alone, and one of the keys that only configs have."""
    statements = ast.parse(block).body
    if not all(isinstance(one, ast.Assign) for one in statements):
        return False
    return not {ast.unparse(one.targets[0]) for one in statements}.isdisjoint({'_base_', 'custom_imports', 'model'})


def offline(part):
    """Replace what would be downloaded, in place: weights by random ones; a tokenizer of the hub leaves no stand-in."""
    if isinstance(part, list | tuple):
        for entry in part:
            offline(entry)
    elif isinstance(part, dict):
        for key in ('pretrained', 'pretrained_model_name_or_path'):
            if part.get(key) in STAND_INS:
                part['config'] = STAND_INS[part.pop(key)]
                if 'type' in part:
                    part['type'] = part['type'].removesuffix('.from_pretrained')
        init_cfg, processor = part.get('init_cfg'), part.get('processor')
        if isinstance(init_cfg, dict) and init_cfg['type'] == 'Pretrained':
            part['init_cfg'] = None
        if isinstance(processor, dict) and processor.get('tokenizer') in STAND_INS:
            part['processor'] = None
        for entry in part.values():
            offline(entry)


def build(block, folder):
    """Load a config from a file, and build what it has."""
    if 'mmdet::' in block:
        pytest.importorskip('mmdet', reason="needs MMDetection: pip install -e '.[detection]'")
    path = folder / 'config.py'
    path.write_text(block)
    cfg = Config.fromfile(path)
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    for hook in cfg.get('custom_hooks') or []:
        HOOKS.build(hook)
    for metric in cfg.get('val_evaluator') if isinstance(cfg.get('val_evaluator'), list) else []:
        METRICS.build(metric)
    if 'model' in cfg:
        # As Runner does: MMPretrain's classifiers take the preprocessor of the config.
        cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        if cfg.model.data_preprocessor is None:
            cfg.model.pop('data_preprocessor')
        offline(cfg.model)
        model = MODELS.build(cfg.model)
        assert isinstance(model, nn.Module) and type(model).__name__ == cfg.model.type
    else:
        assert next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    return cfg


def run_page(page, folder):
    """Run the blocks of a page, in order and in one namespace; the configs among them are built."""
    space = ModuleType(page.stem)
    for match in BLOCK.finditer(page.read_text()):
        line = page.read_text()[: match.start()].count('\n') + 1
        if is_config(match[1]):
            build(match[1], folder)
        else:
            # Empty lines before the block, so that a traceback has the lines of the page.
            exec(compile('\n' * line + match[1], str(page), 'exec'), space.__dict__)
    return space


def test_readme_and_get_started_have_code_to_run():
    found = Counter()
    for page in (ROOT / 'README.md', ROOT / 'docs/get_started.md'):
        found.update('config' if is_config(block) else 'code' for block in BLOCK.findall(page.read_text()))
    assert found['config'] >= 4 and found['code'] >= 3


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
def test_the_code_of_a_page_runs(page, tmp_path, leave_no_trace):
    if page.name == 'with_mmdetection.md':
        pytest.importorskip('mmdet', reason="needs MMDetection: pip install -e '.[detection]'")
    run_page(page, tmp_path)


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


# Links.

LINK = re.compile(r'\]\(([^)\s]+)\)')
HEADING = re.compile(r'^#+ (.+)$', re.MULTILINE)


def text_of(page):
    """A page without its code."""
    return re.sub(r'`[^`\n]+`', '', re.sub(r'^```.*?^```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL))


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
    for link in LINK.findall(text_of(page)):
        if re.match(r'https?:', link):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.is_file() and target.is_relative_to(ROOT), f'{link} leads nowhere'
        assert not anchor or anchor in anchors(target), f'{link}: no such heading; {sorted(anchors(target))}'


def test_anchors_are_those_of_github(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('# A (b [2311.1](https://x)), `c_d`\n\n## What is it?\n\n```\n# code\n```\n## What is it?\n')
    assert anchors(page) == {'a-b-23111-c_d', 'what-is-it', 'what-is-it-1'}


def test_every_make_target_that_a_page_names_is_one_that_make_help_lists():
    listed = set(re.findall(r'^([a-z-]+):.*## ', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r'(?:`|^)make ([a-z-]+)', page.read_text(), re.MULTILINE)}
    assert {'docs', 'gallery'} <= listed and {'demo', 'test', 'gallery'} <= named
    assert named <= listed


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
    missing = {name for name, obj in registered().items() if name not in names and obj not in objects}
    assert not missing
    assert {'MergeMix', 'SphinxModel', 'AIAHook', 'ConversationCollate', 'BackboneLayerDecayConstructor'} <= {
        *registered()
    }


# Of Sphinx' own interfaces, which its extensions use.
@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::PendingDeprecationWarning')
def test_the_site_builds_without_a_warning(tmp_path, monkeypatch, capfd):
    pytest.importorskip('myst_parser', reason='make docs installs what builds the site')
    from sphinx.cmd.build import build_main

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, 'path', [*sys.path])  # The settings of the site extend it.
    # The builder that writes nothing reads and resolves all the same.
    code = build_main(['-q', '-E', '-W', '-b', 'dummy', '-c', 'docs', '.', str(tmp_path)])
    assert code == 0, capfd.readouterr().err[-3000:]
