"""Tests of bits whose file meets a budget of bytes."""

import pytest
from study import file_bits


def test_bits_are_found_for_a_file_that_is_only_a_few_bytes_too_large():
    # Each bit saves a thousand bytes, and the file is 50 bytes above the goal.
    found = file_bits.proposed(
        lambda limit: int(limit + 900) // 1_000, lambda bits: 1_000 * bits - 550, 40_000
    )
    assert found == 39


def test_a_budget_that_no_proposal_meets_is_refused():
    with pytest.raises(ValueError, match="40,000 bytes"):
        file_bits.proposed(lambda limit: 2, lambda bits: 50_000, 40_000)
