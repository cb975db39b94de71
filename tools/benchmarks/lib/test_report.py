"""A plugin of pytest that writes the result of each test to a file at once, so that a stopped run loses nothing."""

import json
import os
from pathlib import Path

import pytest

FILE = 'MERGEMIX_TEST_REPORT'


class Report:
    """Adds a line for each test: for its call, or for a failure or skip before or after it.

    Args:
        file (Path): The file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the line."""
        if report.passed and report.when != 'call':
            return
        line = dict(name=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2))
        if report.failed:
            crash = getattr(report.longrepr, 'reprcrash', None)
            line['message'] = (crash.message if crash else str(report.longrepr))[:1000]
        with self.file.open('a', encoding='utf-8') as stream:
            stream.write(json.dumps(line) + '\n')


def pytest_configure(config: pytest.Config) -> None:
    """Register the report, except in worker processes, whose reports come to the first process."""
    if not hasattr(config, 'workerinput'):
        config.pluginmanager.register(Report(Path(os.environ[FILE])))
