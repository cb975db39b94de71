"""What the tests of the applications share."""

import sys

import pytest
import tiny_applications
from repository_configs import ROOT

# As PYTHONPATH=. does for the commands of the projects.
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope='session')
def picture_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('picture') / 'picture.png'
    tiny_applications.picture().save(path)
    return path


@pytest.fixture(scope='session')
def sphinx_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sphinx') / 'pretrained'
    tiny_applications.save_sphinx(folder)
    return folder


@pytest.fixture(scope='session')
def sam_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sam')
    tiny_applications.save_sam(folder)
    return folder
