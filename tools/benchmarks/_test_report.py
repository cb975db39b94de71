"""A plugin of pytest that writes how each test ended to a file at once, so that a stopped run loses nothing."""

import json
import os

import pytest

FILE = 'MERGEMIX_TEST_REPORT'


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add a line for a test: of its call, or of whatever ended it before or after that."""
    if 'PYTEST_XDIST_WORKER' in os.environ or (report.passed and report.when != 'call'):
        return
    line = dict(name=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2))
    if report.failed:
        crash = getattr(report.longrepr, 'reprcrash', None)
        line['message'] = (crash.message if crash else str(report.longrepr))[:1000]
    with open(os.environ[FILE], 'a', encoding='utf-8') as stream:
        stream.write(json.dumps(line) + '\n')
