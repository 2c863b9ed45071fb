"""The benchmark suite runs, in tiny sizes, with the peers that are installed; how fast anything is, no test asks."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xpnet.cli import main

ROOT = Path(__file__).parents[1]

# torch.compile is left out: half a minute of a C++ compiler for every table.
PEERS = {"PyTorch": "torch", "JAX": "jax", "scikit-learn": "sklearn"}
TABLES = {
    "gd": {"planar", "digits"},
    "predict": {"latency", "throughput"},
    "growth": {"m, full batch", "m, batch 4,096", "n_x", "n_h"},
    "threads": {"planar", "digits"},
}


def run(*arguments: str, script: str = "cpu.py", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tests/benchmarks" / script), "--quick", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, Any]]:
    """What one run printed, where it wrote, and what."""
    out = tmp_path_factory.mktemp("benchmarks") / "results.json"
    only, workloads = ",".join(TABLES), "planar,digits"
    done = run("--only", only, "--workloads", workloads, "--peers", ",".join(PEERS), "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, out, json.loads(out.read_text())


def contests(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [table for name in ("gd", "predict") for table in results["sections"][name]["tables"].values()]


def test_each_section_has_its_tables(measured):
    sections = measured[2]["sections"]
    assert {name: set(section["tables"]) for name, section in sections.items()} == TABLES


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_is_measured_when_it_is_installed_and_skipped_with_a_word_when_not(measured, peer):
    for table in contests(measured[2]):
        row = table["contenders"].get(peer)
        if row is None:
            assert peer == "JAX"  # it does not predict here
        elif importlib.util.find_spec(PEERS[peer]):
            assert row["ratio"]["min"] <= row["ratio"]["median"] <= row["ratio"]["max"]
            assert len(row["seconds"]) == table["runs"] == 2
        else:
            assert row == {"skipped": f"{PEERS[peer]} is not installed"}


def test_contenders_compute_the_same(measured):
    rows = [row for table in contests(measured[2]) for row in table["contenders"].values() if "seconds" in row]
    assert [row["wrong"] for row in rows if "wrong" in row] == [""] * len(rows)


def test_what_is_printed_is_written_and_names_nothing_of_this_machine(measured):
    printed, out, _ = measured
    report = out.with_suffix(".md").read_text()
    assert "| contender" in printed
    assert {line for line in printed.splitlines() if line.startswith("| ")} <= set(report.splitlines())
    for text in (report, out.read_text()):
        assert not [path for path in (ROOT, Path.home(), out.parent, sys.prefix) if f"{path}/" in text]


def test_later_sections_are_merged_into_the_file(measured, tmp_path):
    out = tmp_path / "merged.json"
    out.write_text(measured[1].read_text())
    arguments = ("--only", "import,memory,gd", "--workloads", "wide", "--peers", "scikit-learn", "--out", str(out))
    assert run(*arguments).returncode == 0
    sections = json.loads(out.read_text())["sections"]
    assert set(sections) == {*TABLES, "import", "memory"}
    assert set(sections["gd"]["tables"]) == {"planar", "digits", "wide"}
    assert "products" in sections["gd"]["tables"]["wide"]["contenders"]
    assert sections["growth"] == measured[2]["sections"]["growth"]


def test_a_peer_that_cannot_be_imported_is_skipped_with_its_error(tmp_path):
    (tmp_path / "torch.py").write_text('raise ImportError("broken on purpose")')
    out = tmp_path / "results.json"
    arguments = ("--only", "gd", "--workloads", "planar", "--peers", "PyTorch", "--out", str(out))
    done = run(*arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    contenders = json.loads(out.read_text())["sections"]["gd"]["tables"]["planar"]["contenders"]
    assert contenders["PyTorch"] == {"skipped": "ImportError: broken on purpose"}


def test_results_of_another_kind_are_not_merged(measured, tmp_path):
    out = tmp_path / "full.json"
    out.write_text(json.dumps(measured[2] | {"quick": False}))
    done = run("--only", "import", "--out", str(out))
    assert done.returncode == 1
    assert "full.json was measured with another quick: False, not True. Name another --out." in done.stderr


def test_data_larger_than_memory_is_measured(tmp_path):
    arguments = ["--quick", "--only", "memory,throughput", "--repeats", "1", "--out", str(tmp_path)]
    command = [sys.executable, str(ROOT / "tests/benchmarks/big.py"), *arguments, "--actions", "fit,predict"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = (json.loads(path.read_text()) for path in tmp_path.glob("big-*.json"))
    assert results["throughput"]["same bits"]
    assert set(results["memory"]) == {"fit", "predict"}
    assert not [each["error"] for each in results["memory"].values() if "error" in each]
    (report,) = (path.read_text() for path in tmp_path.glob("big-*.md"))
    assert "bit" in report


def test_a_cluster_is_measured(tmp_path):
    pytest.importorskip("distributed", reason="Dask's scheduler is not installed")
    pytest.importorskip("pyarrow")
    command = [sys.executable, str(ROOT / "tests/benchmarks/cluster.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = (json.loads(path.read_text()) for path in tmp_path.glob("cluster-*.json"))
    contests = [results["steps"], results["small"], *results["sums"].values()]
    mpi = bool(shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"))
    mpi = mpi and importlib.util.find_spec("mpi4py") is not None
    assert {"MPI" in each["seconds"] for each in contests} == {mpi}
    assert all(len(seconds) == 1 for each in contests for seconds in each["seconds"].values())
    assert len({each["bits"] for each in results["large"].values()}) == 1
    (report,) = (path.read_text() for path in tmp_path.glob("cluster-*.md"))
    assert all(
        f"| {word}" in report for word in ("cluster and one process", "100-64-1 (0.02 MiB), star", ".npy", "Parquet")
    )
    for text in (report, json.dumps(results)):
        assert not [path for path in (ROOT, Path.home(), tmp_path, sys.prefix) if f"{path}/" in text]


def test_an_unknown_section_is_refused_with_the_known_ones():
    done = run("--only", "fastest")
    assert done.returncode == 2
    assert "fastest is not among import, gd, adam" in done.stderr


@pytest.mark.parametrize("arguments", [["--only", "gd"], ["--only=gd", "--workloads", "planar", "--peers", "PyTorch"]])
def test_the_command_measures_what_it_is_asked_to(tmp_path, capfd, arguments):
    out = tmp_path / "found.json"
    quick = ["--quick", "--repeats", "1", "--out", str(out), "--peers", "scikit-learn", "--workloads", "planar"]
    assert main(["bench", *quick, *arguments]) == 0
    (table,) = json.loads(out.read_text())["sections"]["gd"]["tables"].values()
    assert table["runs"] == 1
    assert table["title"] in capfd.readouterr().out


def test_the_command_refuses_a_workload_that_there_is_not(tmp_path, capfd):
    assert main(["bench", "--workloads", "huge", "--out", str(tmp_path)]) == 2
    assert "huge is not among planar, digits" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- the GPU's, on a CPU


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, Any]]:
    """What the benchmark of GPUs printed, where it wrote, and what, when it went through on a CPU."""
    out = tmp_path_factory.mktemp("gpu") / "results.json"
    peers = ("--workloads", "digits-1024", "--peers", "PyTorch,CUDA graph")
    done = run("--device", "cpu", *peers, "--repeats", "1", "--out", str(out), script="gpu.py")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, out, json.loads(out.read_text())


def test_the_benchmark_of_gpus_goes_through_on_a_cpu(gpus):
    sections = gpus[2]["sections"]
    trained = {"digits-1024, gd", "digits-1024, adam"}
    assert {name: set(section["tables"]) for name, section in sections.items()} == {
        "parity": {"digits-1024, float32", "digits-1024, float64"},
        "float32": trained,
        "tf32": trained,
        "large": {"epoch"},
    }


@pytest.mark.parametrize("peer", ["PyTorch"])
def test_a_peer_of_the_gpus_is_measured_when_it_is_installed(gpus, peer):
    tables = [table for name in ("float32", "tf32") for table in gpus[2]["sections"][name]["tables"].values()]
    for row in (table["contenders"][peer] for table in tables):
        if importlib.util.find_spec(PEERS[peer]):
            assert (len(row["seconds"]), row["wrong"]) == (1, "")
        else:
            assert row == {"skipped": f"{PEERS[peer]} is not installed"}


def test_what_needs_a_gpu_is_skipped_with_a_word(gpus):
    for table in gpus[2]["sections"]["float32"]["tables"].values():
        word = table["contenders"]["CUDA graph"]["skipped"]
        expected = "RuntimeError: a CUDA graph needs a GPU" if importlib.util.find_spec("torch") else "not installed"
        assert word.endswith(expected)


def test_the_benchmark_of_gpus_says_that_it_is_untried(gpus):
    printed, out, results = gpus
    assert all("Not yet run on a GPU" in text for text in (printed, out.with_suffix(".md").read_text()))
    assert results["gpu"] == {"name": "none: this ran on the CPU, to test the benchmark itself"}


def test_the_first_session_with_a_gpu_writes_what_became_of_each_step(tmp_path):
    script = str(ROOT / "tests/benchmarks/first_gpu.py")
    command = [sys.executable, script, "--device", "cpu", "--only", "doctor", "sanitizer", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "doctor: passed after" in done.stdout, done.stdout + done.stderr
    (written,) = tmp_path.glob("first-gpu-*.txt")
    assert "== doctor: passed" in written.read_text()
    assert "xpnet" in written.read_text()
