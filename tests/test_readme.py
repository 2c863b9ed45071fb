"""Every code block of the README is run, and what it prints is compared."""

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from xpnet.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
SET_UP = "python3 -m venv .venv && .venv/bin/pip install --quiet "


def blocks(language):
    return [text for name, text in BLOCKS if name == language]


@pytest.mark.filterwarnings("ignore::xpnet.errors.DeviceFallbackWarning")
def test_the_python_sessions_print_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XPNET_CPU_FALLBACK", "1")
    session = "\n".join(blocks("python"))
    test = doctest.DocTestParser().get_doctest(session, {}, "README", str(README), 0)
    printed = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=printed.append)
    assert not printed, "".join(printed)


def test_every_block_is_of_a_kind_that_is_run():
    assert {language for language, _ in BLOCKS} <= {"python", "sh", "console"}


def test_the_set_up_commands_are_those_of_continuous_integration():
    install, run, test, *_ = blocks("sh")
    assert install.startswith("pip install xpnet ")
    assert run.startswith(SET_UP + ". && .venv/bin/xpnet demo")
    assert test.strip() in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


def test_the_containers_commands_name_targets_that_there_are():
    *_, cpu, cuda, cluster, _ = blocks("sh")
    dockerfile = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    for block, name in ((cpu, "cpu"), (cuda, "cuda")):
        assert f"--target {name} -t xpnet:{name} ." in block
        assert re.search(rf"^FROM \S+ AS {name}$", dockerfile, re.MULTILINE)
    compose = (ROOT / "docker/compose.yaml").read_text(encoding="utf-8").replace("\\\n#", "")
    assert cluster.replace("\\\n", "").split() in [line.split() for line in re.findall("docker compose.*", compose)]


def test_the_benchmark_command_runs(tmp_path):
    *_, bench = blocks("sh")
    program, *arguments = shlex.split(bench)
    assert program == "xpnet"
    assert main([*arguments, "--quick", "--peers", "scikit-learn", "--out", str(tmp_path)]) == 0


def commands():
    """Return the console blocks' commands with what they print."""
    found = []
    for block in blocks("console"):
        for command, printed in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            found.append(pytest.param(command, printed, id=command[:40]))
    return found


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A folder with the table that the commands read."""
    pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("sklearn.datasets")
    folder = tmp_path_factory.mktemp("terminal")
    wine = datasets.load_wine(as_frame=True)
    frame = wine.frame.assign(target=wine.target_names[wine.target])
    frame.to_csv(folder / "wine.csv", index=False)
    return folder


@pytest.mark.parametrize(("command", "printed"), commands())
def test_the_commands_print_what_the_page_says(command, printed, table):
    program, *arguments = shlex.split(command)
    assert program == "xpnet"
    environment = os.environ | {"XPNET_CPU_FALLBACK": "1", "COLUMNS": "100"}
    run = subprocess.run(
        [sys.executable, "-m", "xpnet", *arguments],
        cwd=table,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    expected = printed if printed.endswith("\n") else printed + "\n"
    checker = doctest.OutputChecker()
    assert checker.check_output(expected, run.stdout, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), run.stdout
