"""The images' files agree with the package's; `docker/check` builds the images and runs them."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
COMPOSE = (ROOT / "docker/compose.yaml").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_cuda_image_has_a_cupy_that_the_extra_allows():
    major = re.search(r"^ARG CUDA=(\d+)\.", DOCKERFILE, re.MULTILINE)[1]
    version = re.search(r'"cupy-cuda\$\{CUDA%%\.\*\}x==([\d.]+)"', DOCKERFILE)[1]
    extra = {extra.name: extra for extra in map(Requirement, PROJECT["optional-dependencies"][f"cuda{major}"])}
    assert version in extra[f"cupy-cuda{major}x"].specifier
    assert re.search(r" nvmath-python==([\d.]+)", DOCKERFILE)[1] in extra["nvmath-python"].specifier


def test_compose_builds_every_image_and_gives_those_for_cuda_a_gpu():
    services = dict(re.findall(r"^  ([\w-]+):\n((?:    .*\n)+)", COMPOSE.partition("\nservices:\n")[2], re.MULTILINE))
    assert set(services) == {"cpu", "cuda", "cpu-test", "cuda-test", "scheduler", "worker", "cluster"}
    for name, service in services.items():
        target = "cluster" if name in ("scheduler", "worker") else name
        assert re.search(rf"^FROM \S+ AS {target}$", DOCKERFILE, re.MULTILINE)
        assert f"target: {target} " in service
        assert ("deploy: *gpu" in service) == name.startswith("cuda")
