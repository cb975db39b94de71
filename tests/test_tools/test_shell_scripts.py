"""What the dist_*.sh and slurm_*.sh scripts would run, told by stand-ins for python and srun."""

import os
import subprocess
from pathlib import Path

import pytest
from limits import HANGS

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.fixture
def run_script(tmp_path):
    """Run a script, and give the words of the command that it ends in."""
    for name in ('python', 'srun'):
        stub = tmp_path / name
        stub.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" "PYTHONPATH=$PYTHONPATH"\n')
        stub.chmod(0o755)

    def run(script, *arguments, **environment):
        clean = dict(PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}', **environment)
        command = ['bash', TOOLS / script, *arguments]
        return subprocess.run(command, env=clean, capture_output=True, text=True, timeout=HANGS)

    return run


def words(done):
    """The words of the command; the repository has to be on its PYTHONPATH."""
    assert done.returncode == 0, done.stderr
    *command, path = done.stdout.splitlines()
    assert Path(path.removeprefix('PYTHONPATH=').split(':')[0]).resolve() == TOOLS.parent
    return command


TORCHRUN = ['python', '-m', 'torch.distributed.run']


@pytest.mark.parametrize(
    ('script', 'arguments', 'program'),
    [
        ('dist_train.sh', ['c.py', '4', '--amp'], ['train.py', 'c.py', '--launcher', 'pytorch', '--amp']),
        (
            'dist_test.sh',
            ['c.py', 'c.pth', '4', '--out=o'],
            ['test.py', 'c.py', 'c.pth', '--launcher', 'pytorch', '--out=o'],
        ),
    ],
)
def test_dist_scripts_start_torchrun(run_script, script, arguments, program):
    place = ['--master_addr=127.0.0.1', '--master_port=29500']
    program = [f'{TOOLS}/{program[0]}', *program[1:]]
    one = [*TORCHRUN, '--nnodes=1', '--node_rank=0', '--nproc_per_node=4', *place, *program]
    assert words(run_script(script, *arguments)) == one
    several = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='head', PORT='1234', PYTHONPATH='/elsewhere')
    place = ['--master_addr=head', '--master_port=1234']
    two = [*TORCHRUN, '--nnodes=2', '--node_rank=1', '--nproc_per_node=4', *place, *program]
    assert words(run_script(script, *arguments, **several)) == two


@pytest.mark.parametrize(
    ('script', 'arguments', 'program'),
    [
        ('slurm_train.sh', ['c.py', 'work', '--amp'], ['train.py', 'c.py', '--work-dir', 'work']),
        ('slurm_test.sh', ['c.py', 'c.pth', '--amp'], ['test.py', 'c.py', 'c.pth']),
    ],
)
def test_slurm_scripts_start_srun(run_script, script, arguments, program):
    program = ['python', '-u', f'{TOOLS}/{program[0]}', *program[1:], '--launcher', 'slurm', '--amp']
    tasks = ['--gres=gpu:8', '--ntasks=8', '--ntasks-per-node=8', '--cpus-per-task=5', '--kill-on-bad-exit=1']
    job = ['srun', '--partition=gpus', '--job-name=mix']
    assert words(run_script(script, 'gpus', 'mix', *arguments)) == [*job, *tasks, *program]
    settings = dict(GPUS='16', GPUS_PER_NODE='4', CPUS_PER_TASK='2', SRUN_ARGS='--qos=low --mem=8G')
    tasks = ['--gres=gpu:4', '--ntasks=16', '--ntasks-per-node=4', '--cpus-per-task=2', '--kill-on-bad-exit=1']
    expected = [*job, *tasks, '--qos=low', '--mem=8G', *program]
    assert words(run_script(script, 'gpus', 'mix', *arguments, **settings)) == expected


@pytest.mark.parametrize('script', sorted(path.name for path in TOOLS.glob('*.sh')))
def test_too_few_arguments_show_the_usage(run_script, script):
    done = run_script(script, 'c.py')
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith('usage: ') and 'CONFIG' in done.stderr
