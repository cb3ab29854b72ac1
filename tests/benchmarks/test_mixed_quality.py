"""`mixed_quality.py` continues where it stopped, even if runs fail."""

import json

import mixed_quality
import pytest
from absl import flags
from absl.testing import flagsaver
from helpers.small_networks import network
from study import assignments, external_methods, float_networks, plan, runs


@pytest.fixture
def driver(tmp_path, monkeypatch):
    executed = []

    def execute(run):
        executed.append(run)
        if run.method == "pact":
            raise RuntimeError("it failed")
        score = {"accuracy": 0.5, "cost": None, "cells": {}}
        return {"run": json.loads(run.key), "scores": {"a": score}}

    monkeypatch.setattr(mixed_quality, "executed", execute)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(results=str(tmp_path / "found.jsonl")):
        yield executed


def wanted():
    return [
        runs.Run(network="resnet8", method=method, kind="mean_bit_width", budget=3.0, bits=bits)
        for method, bits in (("dqmq", None), ("pact", (3, 2)), ("lsq", (3, 2)))
    ]


def test_recorded_runs_are_not_repeated_but_failed_ones_are(driver):
    assert mixed_quality.execute_missing(wanted(), mixed_quality.records(), float("inf"))
    assert len(driver) == 3 and len(mixed_quality.records()) == 2
    driver.clear()
    assert mixed_quality.execute_missing(wanted(), mixed_quality.records(), float("inf"))
    assert [run.method for run in driver] == ["pact"]


def test_no_run_starts_after_the_deadline(driver):
    assert not mixed_quality.execute_missing(wanted(), [], 0.0)
    assert not driver and not mixed_quality.records()


def test_a_run_that_is_planned_several_times_is_executed_once(driver):
    mixed_quality.execute_missing([wanted()[0]] * 3, [], float("inf"))
    assert len(driver) == 1


def test_hgq2_is_planned_only_if_its_environment_is_set(driver, monkeypatch):
    costs = {name: assignments.cost_model(network()) for name in float_networks.NETWORKS}
    monkeypatch.setattr(plan, "MEAN_BITS", (5.5,))
    for python, methods in (("", {"dqmq"}), ("other/python", {"dqmq", "hgq2"})):
        monkeypatch.setenv(external_methods.PYTHON_VARIABLE, python)
        with flagsaver.flagsaver(methods=["dqmq", "hgq2"]):
            found, lines = mixed_quality.planned("table", costs, []), mixed_quality.left_out()
        assert {run.method for run in found} == methods
        assert len(lines) == ("hgq2" not in methods)
        assert all(line.startswith("HGQ2 is left out: set DQMQ_HGQ2_PYTHON") for line in lines)
