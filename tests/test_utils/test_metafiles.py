"""Metafiles of other libraries are parsed once."""

from collections import Counter

from mmengine import fileio
from mmengine.config import Config, utils

from mergemix_mm.utils import metafiles


def test_a_metafile_is_parsed_once_for_all_bases_and_files(tmp_path, monkeypatch):
    parsed = Counter()

    def load(path):
        parsed[path] += 1
        return fileio_load(path)

    fileio_load = fileio.load
    monkeypatch.setattr(fileio, 'load', load)
    monkeypatch.setattr(utils, 'load', load)
    metafiles._parsed.cache_clear()
    file = tmp_path / 'config.py'
    file.write_text(
        "_base_ = ['mmpretrain::_base_/default_runtime.py', 'mmpretrain::_base_/schedules/imagenet_bs256.py']"
    )
    for _ in range(2):
        with metafiles.metafiles_parsed_once():
            assert Config.fromfile(file).train_cfg.max_epochs == 100
    assert len(parsed) > 50 and set(parsed.values()) == {1}
    assert utils.load is load
