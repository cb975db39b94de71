"""The last line of `make demo` repeats what the run wrote."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / 'tools' / 'analysis_tools' / 'summarize_run.py'
spec = importlib.util.spec_from_file_location('summarize_run', SCRIPT)
summarize_run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(summarize_run)


def write_run(work_dir, name, accuracies):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    records = [{'loss': 1.0}, *({'accuracy/top1': value} for value in accuracies), {'loss': 0.5}]
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))
    (work_dir / name / f'{name}.log').touch()


def test_the_last_value_of_the_last_run_is_reported_with_its_files(tmp_path):
    write_run(tmp_path, '20250101_000000', [99.0])
    write_run(tmp_path, '20250102_000000', [50.0, 97.216])
    figure = tmp_path / '20250102_000000' / 'vis_data' / 'mixed_samples_9.png'
    figure.touch()
    (tmp_path / 'last_checkpoint').write_text('/somewhere/epoch_2.pth')
    line = summarize_run.summarize(tmp_path)
    assert 'accuracy/top1: 97.22' in line and '/somewhere/epoch_2.pth' in line
    assert '20250102_000000.log' in line and f'figure: {figure}' in line


def test_a_run_without_validation_reports_no_accuracy(tmp_path):
    write_run(tmp_path, '20250101_000000', [])
    line = summarize_run.summarize(tmp_path)
    assert 'accuracy/top1: none' in line and 'checkpoint: none' in line and 'figure: none' in line


def test_a_folder_without_a_run_is_refused_by_name(tmp_path):
    with pytest.raises(SystemExit, match='no training run'):
        summarize_run.summarize(tmp_path)
