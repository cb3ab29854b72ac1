"""Some of the random models of `examples/benchmarks/random_models.py`.

Each goes from float through `quantize_model`, `fit`, `save`, `load_model`, `convert` and `verify` to
a file that runs by index. The seeds are those of small models that take seconds.
"""

import pytest
import random_examples

SEEDS = (6, 12, 73, 102, 157, 164)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_model_ends_in_a_file_that_computes_the_same(seed):
    result = random_examples.measure(seed)
    assert result.outcome == random_examples.PASSED, f"{result.stage}: {result.message}"
    assert result.loads_equal and result.different_numbers == 0
    assert result.mean_quanta <= 8


def test_exchanged_outputs_are_a_silent_wrong_result(monkeypatch):
    run = random_examples._outputs_by_index
    monkeypatch.setattr(
        random_examples, "_outputs_by_index", lambda *args: list(reversed(run(*args)))
    )
    result = random_examples.measure(1)
    assert (result.outcome, result.stage) == (random_examples.FAILED, "run")
    assert result.is_silent and not result.is_late
