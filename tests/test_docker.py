"""The images' files agree with the package's; `docker/check` builds the images and runs them."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
COMPOSE = (ROOT / "docker/compose.yaml").read_text(encoding="utf-8")
CHECK = (ROOT / "docker/check").read_text(encoding="utf-8")
SERVICES = dict(re.findall(r"^  ([\w-]+):\n((?:    .*\n)+)", COMPOSE.partition("\nservices:\n")[2], re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_cuda_image_has_a_cupy_that_the_extra_allows():
    major = re.search(r"^ARG CUDA=(\d+)\.", DOCKERFILE, re.MULTILINE)[1]
    version = re.search(r'"cupy-cuda\$\{CUDA%%\.\*\}x==([\d.]+)"', DOCKERFILE)[1]
    extra = {extra.name: extra for extra in map(Requirement, PROJECT["optional-dependencies"][f"cuda{major}"])}
    assert version in extra[f"cupy-cuda{major}x"].specifier
    assert re.search(r" nvmath-python==([\d.]+)", DOCKERFILE)[1] in extra["nvmath-python"].specifier


def test_compose_builds_every_image_and_gives_those_for_cuda_a_gpu():
    assert set(SERVICES) == {"cpu", "cuda", "cpu-test", "cuda-test", "scheduler", "worker", "cluster"}
    for name, service in SERVICES.items():
        target = "cluster" if name in ("scheduler", "worker") else name
        assert re.search(rf"^FROM \S+ AS {target}$", DOCKERFILE, re.MULTILINE)
        assert f"target: {target} " in service
        assert ("deploy: *gpu" in service) == name.startswith("cuda")


def test_the_scheduler_is_asked_where_it_listens():
    entrypoint = re.search(r"entrypoint: \[dask, scheduler, (.*)\]", SERVICES["scheduler"])[1]
    listens = {"8786", re.search(r'--dashboard-address, ":(\d+)"', entrypoint)[1]}
    asked = re.findall(r"//scheduler:(\d+)", COMPOSE + CHECK)
    assert set(asked) == listens
    assert "--port" not in entrypoint


def test_workers_share_the_cores_among_as_many_as_there_are():
    assert re.findall(r"WORKERS:-(\d+)", SERVICES["worker"]) == ["2"] * 3
    assert 'replicas: "${WORKERS:-2}"' in SERVICES["worker"]


def test_what_opens_files_sees_the_folder():
    assert {name for name in SERVICES if "<<: *" in SERVICES[name]} == {"cpu", "cuda", "worker", "cluster"}
