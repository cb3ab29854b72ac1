"""A trained model and its summary, each made once for all tests of `dqmq_tf.report`."""

import pytest
from helpers import summarized_models

from dqmq_tf.report.summary import summary


@pytest.fixture(scope="session")
def data():
    """Batches of `mixed_digits`."""
    return summarized_models.mixed_digits()


@pytest.fixture(scope="session")
def arrays(data):
    """Images, labels, kinds and severities of `data`."""
    return summarized_models.columns(data)


@pytest.fixture(scope="session")
def per_sample(data):
    """A model with activation bits per sample and two profiles."""
    return summarized_models.per_sample_model(data)


@pytest.fixture(scope="session")
def report(per_sample, data):
    """The summary of `per_sample`."""
    return summary(per_sample, data)
