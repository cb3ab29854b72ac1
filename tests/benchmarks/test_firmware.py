"""`firmware.py`: its record in `results/`, and what it objects to."""

import dataclasses
import json
import pathlib

import firmware
import pytest

RECORD = pathlib.Path(firmware.__file__).parent / "results" / "firmware.json"


@pytest.fixture(scope="module")
def rows():
    return [firmware.Row(**row) for row in json.loads(RECORD.read_text())["files"]]


def test_the_record_has_every_file_and_nothing_to_object_to(rows):
    cases = {(row.network, row.storage, row.kernels) for row in rows}
    networks = {row.network for row in rows}
    assert len(rows) == len(cases) == len(networks) * len(firmware.storages()) * 2
    assert networks == {"ResNet-8", "small"}
    assert firmware.missed(rows) == []


def test_only_the_operator_that_decodes_brings_code(rows):
    for row in rows:
        if row.coded:
            assert 6_000 < row.decoder_bytes < 7_000
        else:
            assert row.decoder_bytes == 0


def test_a_smaller_firmware_than_the_chosen_one_is_reported(rows):
    first = next(row for row in rows if row.storage == "INT4")
    smaller = dataclasses.replace(first, flash_bytes=1)
    changed = [smaller if row is first else row for row in rows]
    (message,) = firmware.missed(changed)
    assert first.network in message and first.kernels in message


def test_outputs_that_differ_are_reported(rows):
    wrong = dataclasses.replace(rows[0], equal=1)
    assert len(firmware.missed([wrong, *rows[1:]])) == 1
