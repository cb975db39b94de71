"""tools/analysis_tools/summarize_run.py: what it says of runs that are there, and of those that are not."""

import json
import os

import pytest


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis_tools/summarize_run')


def write_run(work_dir, name, records):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))
    return work_dir / name


def test_the_last_run_and_its_last_value_count(tool, tmp_path):
    write_run(tmp_path, '20260101_000000', [{'accuracy/top1': 90.0}])
    run = write_run(tmp_path, '20260102_000000', [{'accuracy/top1': 10.0}, {'loss': 1.0}, {'accuracy/top1': 97.216}])
    (run / 'run.log').touch()
    figures = [run / 'vis_data' / 'vis_image' / f'mixed_samples_{step}.png' for step in (99, 120)]
    figures[0].parent.mkdir()
    for time, figure in enumerate(figures):
        figure.touch()
        os.utime(figure, (time, time))
    (tmp_path / 'last_checkpoint').write_text('epoch_3.pth\n')
    expected = f'accuracy/top1: 97.22 | log: {run / "run.log"} | checkpoint: epoch_3.pth | figure: {figures[1]}'
    assert tool.summarize(tmp_path) == expected


def test_what_a_run_did_not_write_is_none(tool, tmp_path):
    write_run(tmp_path, '20260101_000000', [{'loss': 1.0}])
    assert tool.summarize(tmp_path, 'bbox_mAP') == 'bbox_mAP: none | log: none | checkpoint: none | figure: none'


def test_a_folder_without_runs_is_named(tool, tmp_path):
    with pytest.raises(SystemExit, match=f'WORK_DIR={tmp_path}'):
        tool.summarize(tmp_path)
