"""Trained networks, frozen ones and their files, each made once for all tests that need it."""

import functools
import gc
import os
import random

# TensorFlow uses oneDNN by default on some processors only. With it on all, tests see the same kernels
# and the same rounding everywhere. It has to be known before TensorFlow is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Tests run in several processes. With a thread in each, they do not wait for one another.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import numpy as np
import pytest
from helpers import old_environment
from helpers.frozen_models import TABLES, every_bit_width_model, freeze, images, small_model
from helpers.small_networks import KINDS, as_floats, compiled, network, training_data
from xdist.scheduler import LoadFileScheduling

import dqmq_tf
from dqmq_tf import export, quality, runtimes

# Files of half a minute and more. At the end of a run, one of them would leave a processor idle.
_LONG = (
    "training/test_several_workers.py",
    "test_notebooks.py",
    "test_fit.py",
    "keras/test_killed_runs.py",
    "keras/test_schedule_of_fit.py",
    "tflite/test_web_page.py",
    "test_model.py",
    "test_quickstart.py",
    "test_readme.py",
    "budget/test_npu_budget.py",
    "benchmarks/test_oracle.py",
)


def pytest_collection_modifyitems(items):
    """Puts long files first. `--no-loadscope-reorder` makes pytest-xdist keep the order."""
    items.sort(
        key=lambda item: not (_shares_models(item.path) or item.path.as_posix().endswith(_LONG))
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Gives each file to one process, and all files that share the largest models to the same."""
    return _ByFile(config, log)


class _ByFile(LoadFileScheduling):
    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return "every_bit_width" if _shares_models(self.config.rootpath / file) else file


@functools.cache
def _shares_models(path):
    """Returns whether a file of tests needs the models of every bit-width."""
    return "every_bit_width" in path.read_text()


def pytest_collectstart():
    _seed()


def pytest_fixture_setup():
    _seed()


def pytest_runtest_call():
    _seed()


def _seed():
    """Makes what a module, a fixture or a test draws the same in every run, whatever ran before it.

    Keras takes the seeds of its layers from Python's numbers. Many tests set seed 0 themselves.
    """
    random.seed(1)
    np.random.seed(1)


# Keras and TensorFlow make so many objects that Python searches for garbage all the time.
gc.set_threshold(5_000, 20, 10)


@pytest.fixture(scope="module", autouse=True)
def no_search_for_garbage_in_what_stays():
    """Keeps the modules and the models of other files out of the garbage collection.

    Else each search looks through all of them.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def float_network():
    """A float network after one pass over mixed-quality digits."""
    model = compiled(network())
    model.fit(training_data(), verbose=0)
    return model


@pytest.fixture(scope="session")
def clean_images():
    """180 clean test digits `[180, 16, 16, 3]` in [0, 1], and their labels."""
    images, labels = next(iter(quality.digits("test", size=16).map(as_floats).batch(180)))
    return images.numpy(), labels.numpy()


@pytest.fixture(scope="session")
def by_kind(clean_images):
    """`{kind: images}` of the same digits at severity 5, and `"clean"`."""
    images, _ = clean_images
    degraded = {kind: np.array(quality.degrade(images, kind, 5, seed=3)) for kind in KINDS}
    return {"clean": images, **degraded}


@pytest.fixture(scope="session")
def simulated(float_network):
    """A `DQMQModel` trained in simulation to a mean of 3 bits, with the history of its `fit`."""
    config = dqmq_tf.DQMQConfig(seed=0)
    budget = dqmq_tf.Budget(mean_bit_width=3)
    qmodel = dqmq_tf.quantize_model(
        float_network, target="simulation", budget=budget, config=config
    )
    history = compiled(qmodel, 1e-3).fit(training_data(), epochs=4, verbose=0).history
    return qmodel, history


@pytest.fixture(scope="session")
def deployable(float_network):
    """A `DQMQModel` trained for android to 6,000 download bytes, with the history of its `fit`."""
    qmodel = dqmq_tf.quantize_model(
        float_network, target="android", budget=dqmq_tf.Budget(download_bytes=6_000)
    )
    history = compiled(qmodel, 1e-3).fit(training_data(), epochs=3, verbose=0).history
    return qmodel, history


@pytest.fixture(scope="session")
def small():
    """A frozen `small_model`."""
    return freeze(small_model())


@pytest.fixture(scope="session")
def small_file(small, tmp_path_factory):
    """Path and report of the file of `small`."""
    path = tmp_path_factory.mktemp("small") / "small.tflite"
    return path, export.convert(small, path, data=images(small))


@pytest.fixture(scope="session")
def every_bit_width_of(tmp_path_factory):
    """A function that returns `every_bit_width` for a target, and makes it once."""
    folder = tmp_path_factory.mktemp("bits")

    @functools.cache
    def made(target):
        model, bits = every_bit_width_model()
        qmodel = freeze(model, bits, target=TABLES if target == TABLES.name else target)
        path = folder / f"{target}.tflite"
        return qmodel, path, export.convert(qmodel, path, data=images(model))

    return made


# A fixture with parameters that lasts the session would be made again in each file of tests.
@pytest.fixture(params=["android", "android_small", "microcontroller", "ethos_u"])
def every_bit_width(request, every_bit_width_of):
    """Frozen model, path and report of `every_bit_width_model`, for each deployable target."""
    return every_bit_width_of(request.param)


@pytest.fixture(scope="session")
def tflite_runtime_python(tmp_path_factory):
    """Path of a Python that has tflite-runtime: the user's, or one made for the tests."""
    if os.environ.get(runtimes.PYTHON_VARIABLE):
        return os.environ[runtimes.PYTHON_VARIABLE]
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # Common to all workers.
    return old_environment.python(folder)


@pytest.fixture
def tflite_runtime(tflite_runtime_python, monkeypatch):
    """Lets `runtimes` find tflite-runtime."""
    monkeypatch.setenv(runtimes.PYTHON_VARIABLE, tflite_runtime_python)
    return runtimes.get("tflite-runtime")
