"""`examples/quickstart.py` as a user runs it, with a tiny training."""

import json
import re
import runpy
import sys

import pytest
from helpers.new_process import ROOT, finished, started

SCRIPT = ROOT / "examples" / "quickstart.py"


def _script(*arguments):
    sys.argv = [str(SCRIPT), *arguments]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def run(*arguments):
    """Returns the script's status, and what it prints on its output and as errors."""
    return finished(started(_script, *arguments), timeout=300)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    output = tmp_path_factory.mktemp("quickstart")
    status, printed, errors = run(
        "--epochs=2",
        "--train_examples=192",
        "--test_examples=200",
        "--budget_bytes=30000",
        f"--output={output}",
    )
    assert status == 0, errors[-3000:]
    return printed, json.loads((output / "figures.json").read_text()), output


class TestQuickstart:
    def test_it_prints_both_accuracies(self, digits):
        printed, figures, _ = digits
        found = re.search(r"^float ([\d.]+) %, DQMQ ([\d.]+) % of the test images$", printed, re.M)
        assert float(found[1]) == pytest.approx(100 * figures["float_accuracy"], abs=0.005)
        assert float(found[2]) == pytest.approx(100 * figures["dqmq_accuracy"], abs=0.005)

    def test_it_prints_the_summary(self, digits):
        printed, _, _ = digits
        assert "small_network" in printed
        assert "low_light" in printed

    def test_the_file_has_the_printed_size_and_meets_the_budget(self, digits):
        printed, figures, output = digits
        size = (output / "model.tflite").stat().st_size
        assert f"{size:,} bytes, {figures['download_bytes']:,} under deflate" in printed
        assert figures["file_bytes"] == size
        assert figures["download_bytes"] <= 30_000

    def test_it_prints_each_figure_with_its_bound(self, digits):
        printed, figures, _ = digits
        names = [row["name"] for row in figures["figures"]]
        assert len(names) == 4
        table = printed[printed.index("What came out") :]
        for row in figures["figures"]:
            assert row["value"] in table
            assert row["bound"] in table
        agreement = figures["figures"][-1]
        assert agreement["kept"], agreement
        assert "200 images" in agreement["name"]

    def test_the_saved_model_loads_and_predicts(self, digits):
        import keras
        import numpy as np

        import dqmq_tf

        _, _, output = digits
        model = keras.models.load_model(output / "model.keras")
        assert isinstance(model, dqmq_tf.DQMQModel)
        assert model.frozen_profiles == 1
        predicted = model.predict(np.zeros((2, 32, 32, 3), "float32"), verbose=0)
        np.testing.assert_allclose(predicted.sum(axis=1), 1.0, atol=0.05)


@pytest.mark.parametrize("flag", ["--budget_bytes=0", "--dataset=cifar9"])
def test_an_invalid_flag_is_an_error_that_names_it(flag, tmp_path):
    status, _, errors = run(flag, f"--output={tmp_path / 'never'}")
    assert status == 1
    assert flag[2:].split("=")[0] in errors
    assert not (tmp_path / "never").exists()
