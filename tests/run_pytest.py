"""Runs pytest on the files that are given: what Bazel's `py_test` targets start."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]]))
