"""`inspect_file` lists what a file holds, without the model."""

import dataclasses

import rich

from dqmq_tf import export


def test_it_lists_the_weights_as_the_report_of_the_conversion_does(every_bit_width):
    _, path, report = every_bit_width
    contents = export.inspect_file(path)
    rows = [dataclasses.asdict(row) for row in report.weights]
    listed = ("name", "bits", "container", "table", "bytes")
    reported = ("name", "bit_width", "container", "table", "stored_bytes")
    assert [[e[key] for key in listed] for e in contents.weights] == [
        [row[key] for key in reported] for row in rows
    ]


def test_it_shows_which_weights_are_in_lookup_tables(every_bit_width, capsys):
    qmodel, path, _ = every_bit_width
    rich.print(export.inspect_file(path))
    assert ("INT8, table" in capsys.readouterr().out) == (qmodel.target.name == "microcontroller")
