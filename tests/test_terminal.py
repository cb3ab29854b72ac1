"""Tests the displays of progress and the tables of `dqmq_tf.terminal`."""

import io
import json
import time

import numpy as np
import pytest
import rich.console
from helpers.frozen_models import images, small_model

import dqmq_tf
from dqmq_tf import terminal


@pytest.fixture
def screen(monkeypatch):
    """A terminal that records what is shown on it, and shows progress at once."""
    output = io.StringIO()
    console = rich.console.Console

    def on_screen(**kwargs):
        assert kwargs == {"stderr": True}
        return console(file=output, force_terminal=True, width=100)

    monkeypatch.setattr(rich.console, "Console", on_screen)
    monkeypatch.setattr(terminal, "_PATIENCE_SECONDS", 0.0)
    return output


def wait_until(condition):
    deadline = time.monotonic() + 10.0
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_progress_yields_the_elements_and_shows_a_title(screen):
    elements = terminal.with_progress(iter("abc"), "Evaluating", 3)
    assert next(elements) == "a"
    wait_until(lambda: "Evaluating" in screen.getvalue())
    assert list(elements) == ["b", "c"]


def test_stages_show_the_current_stage(screen):
    with terminal.stages("Converting") as enter:
        enter("calibrating")
        wait_until(lambda: "Converting: calibrating" in screen.getvalue())


def test_work_inside_a_stage_shows_no_display_of_its_own(screen):
    with terminal.stages("Choosing bits") as enter:
        enter("measuring the file")
        wait_until(lambda: "Choosing bits" in screen.getvalue())
        with terminal.stages("Measuring") as enter_inner:
            enter_inner("quantizing")
            time.sleep(0.2)
    assert "quantizing" not in screen.getvalue()


def test_short_work_shows_nothing(screen, monkeypatch):
    monkeypatch.setattr(terminal, "_PATIENCE_SECONDS", 100.0)
    with terminal.stages("Converting") as enter:
        enter("calibrating")
    assert list(terminal.with_progress([1, 2], "Evaluating")) == [1, 2]
    assert "Converting" not in screen.getvalue() and "Evaluating" not in screen.getvalue()


def test_silence_shows_nothing_and_ends_with_its_block(screen):
    with terminal.silence(), terminal.silence(False), terminal.stages("Converting") as enter:
        enter("calibrating")
        time.sleep(0.2)
    assert list(terminal.with_progress([1, 2], "Evaluating")) == [1, 2]
    assert "Converting" not in screen.getvalue() and "Evaluating" in screen.getvalue()


@pytest.mark.parametrize("verbose", [0, 2])
def test_what_comes_before_training_shows_its_stages_unless_fit_is_to_be_silent(verbose, screen):
    model = small_model()
    qmodel = dqmq_tf.quantize_model(model)
    assert "Quantizing: " in screen.getvalue()
    before = len(screen.getvalue())
    qmodel.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    qmodel.fit(images(model, 16), np.zeros(16), epochs=2, verbose=verbose)
    shown = screen.getvalue()[before:]
    assert ("Calibrating: " in shown, "Choosing bits: " in shown) == (bool(verbose),) * 2


def test_an_error_inside_a_stage_ends_the_display(screen):
    with pytest.raises(KeyError), terminal.stages("Converting") as enter:
        enter("calibrating")
        wait_until(lambda: "calibrating" in screen.getvalue())
        raise KeyError
    shown = screen.getvalue()
    assert shown.endswith("\x1b[2K") or "\x1b[?25h" in shown  # The cursor is visible again.


def test_a_pipe_gets_no_progress(capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(terminal, "_PATIENCE_SECONDS", 0.0)
    with terminal.stages("Converting") as enter:
        enter("calibrating")
    assert list(terminal.with_progress([1, 2], "Evaluating")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_tables_align_text_to_the_left_and_numbers_to_the_right():
    table = terminal.new_table("Layers", "layer", "operator", "bits", text_columns=2)
    assert [column.justify for column in table.columns] == ["left", "left", "right"]
    assert str(table.title) == "Layers"


def test_what_looks_like_markup_of_rich_is_shown_as_it_is():
    names = ["[unk]", "[/x]", "a[red]b", ":cat:"]
    table = terminal.new_table("Layers", "layer", "bits")
    for name in names:
        table.add_row(name, "8")
    file = io.StringIO()
    rich.console.Console(file=file, width=80).print(terminal.Lines([", ".join(names), table]))
    first, *rows = (line.strip() for line in file.getvalue().splitlines())
    assert first == "[unk], [/x], a[red]b, :cat:"
    assert [row.split()[0] for row in rows if row.endswith("8")] == names


def test_a_report_is_valid_json_whatever_its_numbers():
    data = {"cost": float("nan"), "rows": ({"most": float("inf")}, [-np.inf, 1.5, None])}
    text = terminal.as_json(data)
    assert json.loads(text) == {"cost": None, "rows": [{"most": None}, [None, 1.5, None]]}
