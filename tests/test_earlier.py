"""Files of earlier versions, and of this one before it is released: they are read for ever."""

import json
import shutil

import earlier
import numpy as np
import pytest

import xpnet
from xpnet import files

VERSIONS = ["0.1"]
ROUNDING = 1e-4  # float32 sums of some hundred terms, in the order of another machine's BLAS, over four epochs

every_version = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture
def known(version):
    return json.loads((earlier.FOLDER / f"known-{version}.json").read_text())


def test_this_version_has_left_its_files():
    assert ".".join(xpnet.__version__.split(".")[:2]) == VERSIONS[-1]


@every_version
@pytest.mark.parametrize("name", earlier.NETWORKS)
def test_a_network_of_an_earlier_version_is_read(version, name, known):
    activation = earlier.CUBE if name == "own" else None
    net = xpnet.load(earlier.FOLDER / f"net-{version}-{name}.safetensors", activation=activation)
    found, then = json.loads(json.dumps(earlier.known(net))), known[name]
    predicted, predicted_then = found.pop("predict_proba"), then.pop("predict_proba")
    np.testing.assert_allclose(predicted, predicted_then, rtol=ROUNDING, atol=ROUNDING)
    if net.classes is None:  # what is predicted is what was just compared
        del found["predict"], then["predict"]
    assert found == then


@every_version
@pytest.mark.parametrize("name", earlier.CHECKPOINTS)
def test_a_checkpoint_of_an_earlier_version_is_gone_on_with(version, name, known, tmp_path):
    path = tmp_path / "run"
    shutil.copyfile(earlier.FOLDER / f"checkpoint-{version}-{name}", path)
    done = files.read(path, kind="checkpoint")[0]["history.cost"].size
    net = earlier.fit(earlier.CHECKPOINTS[name], checkpoint=path)
    history, then = dict(net.history), known[f"checkpoint {name}"]
    assert 0 < done < len(then["cost"])
    for key in ("cost", "validation_cost", "seconds"):
        assert history[key][:done] == then[key][:done]
    np.testing.assert_allclose(history["cost"], then["cost"], rtol=ROUNDING)
    np.testing.assert_allclose(history["validation_cost"], then["validation_cost"], rtol=ROUNDING)


@pytest.mark.parametrize("version", VERSIONS[-1:])
def test_the_checkpoint_of_the_middle_of_an_epoch_is_one(version):
    tensors, _ = files.read(earlier.FOLDER / f"checkpoint-{version}-adam", kind="checkpoint")
    assert tensors["epoch.costs"].size > 0
