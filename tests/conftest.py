"""Networks trained on real images, once for all tests that need a trained one."""

import numpy as np
import pytest
from small_networks import KINDS, as_floats, compiled, network, training_data

import dqmq_tf
from dqmq_tf import quality


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
