"""`plot.py`: tables, Markdown and pictures from known records."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers.comparison_records import SEEN, record, study
from matplotlib import image
from study import corruptions, document, figures, markdown_table, result_tables, results, runs

PLOT = pathlib.Path(__file__).parents[2] / "examples" / "benchmarks" / "plot.py"


@pytest.fixture(scope="module")
def records():
    return study(np.random.default_rng(0))


@pytest.fixture(scope="module")
def found(records):
    return results.Results(records, 600)


@pytest.fixture(scope="module")
def nothing():
    return results.Results([], 600)


def rows(table):
    """Returns `{words of the row: {column: figure}}`."""
    return {
        row[: table.words]: dict(zip(table.columns[table.words :], row[table.words :]))
        for row in table.rows
    }


def test_figures_are_formatted_with_their_error():
    assert markdown_table.figure(None) == "-"
    assert markdown_table.figure(results.Estimate(71.234, None, 1)) == "71.23 (1 seed)"
    assert markdown_table.figure(results.Estimate(71.234, 0.056, 3)) == "71.23 ± 0.06"
    assert markdown_table.figure(results.Estimate(0.5, 0.25, 3), 1, signed=True) == "+0.5 ± 0.2"
    assert markdown_table.figure(results.Estimate(39_000, 12, 3), 0) == "39,000 ± 12"


def test_the_table_of_accuracies_has_all_methods():
    found = results.Results(
        [
            *(
                record("resnet8", "lsq", 0.7 + s / 50, bits=(2, 3), cost=2.4, seed=s)
                for s in (0, 1)
            ),
            record("resnet8", "dqmq", (0.75, 0.7, 0.8, 0.78), cost=2.5),
            record("resnet8", "float", 0.8),
            record("resnet8", "hgq2", 0.72, cost=2.45),
        ],
        600,
    )
    shown = rows(result_tables.accuracies(found, "resnet8"))
    assert shown["2.5", "LSQ w2a3"]["seeds"] == "2"
    assert shown["2.5", "LSQ w2a3"]["a"] == "71.00 ± 1.00"
    assert shown["2.5", "LSQ w2a3"]["bits on a"] == "2.40 ± 0.00"
    assert shown["2.5", "DQMQ"]["d"] == "78.00 (1 seed)"
    assert shown["2.5", "DQMQ"]["bits on d"] == "2.50 (1 seed)"
    assert shown["-", "float"]["bits on a"] == "32"
    assert shown["-", "TFMOT int8"] == dict.fromkeys(shown["-", "TFMOT int8"], "-")
    # The pair of bits is known from LSQ's runs. At other budgets there are no such runs.
    assert set(shown["2.5", "PACT w2a3"].values()) == {"-"}
    assert set(shown["3", "PACT"].values()) == {"-"}
    # HGQ2 is shown only if it has runs.
    assert shown["2.5", "HGQ2"]["bits on a"] == "2.45 (1 seed)"
    for checked in ("LSQ w4a4", "LSQ w4a4, trained as DQMQ"):
        assert set(shown["4.25", checked].values()) == {"-"}
    assert len(shown) == 4 + 3 * 8 + 1


def test_missing_runs_are_shown_as_dashes_in_all_tables(nothing):
    for each in result_tables.tables(nothing):
        for row in each.rows:
            assert set(row[each.words :]) == {"-"}, each.title


def test_the_table_of_leads_shows_targets_and_verdicts():
    pairs = (
        ("dqmq", (0.75, 0.76, 0.77)),
        ("static", (0.74, 0.75, 0.76)),
        ("hawq", (0.8, 0.7, 0.9)),
    )
    found = results.Results(
        [record("resnet8", m, a, seed=s) for m, each in pairs for s, a in enumerate(each)], 600
    )
    shown = {row[:3]: row for row in result_tables.lead_table(found).rows}
    static = shown["ResNet-8", "2.5", "static"]
    assert static[3:5] == ("a +0.3, d +0.5", "a reached, d reached")
    assert static[5:7] == ("3", "+1.00 ± 0.00 †")
    hawq = shown["ResNet-8", "2.5", "HAWQ (best HAWQ)"]
    # The differences are -5, 6 and -13 points.
    assert hawq[4] == "a short, b short, c short" and hawq[6] == "-4.00 ± 5.51"
    assert shown["MobileNetV2", "2.5", "uniform"][3:5] == ("-", "-")
    assert shown["MobileNetV2", "3", "uniform"][3:5] == (
        "a +2, b +0, c +0",
        "a open, b open, c open",
    )


def test_the_table_of_files_shows_bytes_and_their_share_of_the_budget(found):
    shown = rows(result_tables.files(found))
    assert shown["ResNet-8", "40,000", "DQMQ"]["bytes"] == "39,001 ± 1"
    assert shown["ResNet-8", "40,000", "DQMQ"]["largest, % of budget"] == "97.5"
    assert set(shown["ResNet-8", "55,000", "static"].values()) == {"-"}


def test_leads_behind_a_front_are_over_static_bits_behind_the_same_front():
    def behind(front, method, accuracies, **fields):
        made = [record("resnet8", method, a, seed=s, **fields) for s, a in enumerate(accuracies)]
        for each in made:
            each["run"]["front"] = front
        return made

    shuffled = {"shuffled": dict.fromkeys("abcd", 0.6)}
    found = results.Results(
        [
            *behind(None, "static", (0.70, 0.71)),
            *behind(None, "dqmq", (0.73, 0.74), **shuffled),
            *behind("standardization", "static", (0.74, 0.75)),
            *behind("standardization", "dqmq", (0.75, 0.755), **shuffled),
            *behind("standardization", "dqmq", (0.76, 0.77), ablation="told_quality", **shuffled),
        ],
        600,
    )
    shown = rows(result_tables.behind_fronts(found))
    assert shown["2.5", "nothing", "DQMQ"]["lead on a"] == "+3.00 ± 0.00"
    at = "2.5", "standardization"
    assert shown[*at, "static"]["a"] == "74.50 ± 0.50"
    assert shown[*at, "static"]["lead on a"] == "-"
    assert shown[*at, "DQMQ"]["lead on a"] == "+0.75 ± 0.25"
    assert shown[*at, "oracle"]["lead on d"] == "+2.00 ± 0.00"
    assert shown[*at, "DQMQ, quality shuffled"]["lead on b"] == "-14.50 ± 0.50"
    assert set(shown["3", "exposure", "static"].values()) == {"-"}


def test_ablations_are_compared_with_dqmq_at_the_same_budget(found):
    ablations = result_tables.ablations(found).rows
    assert len(ablations) == 1 + len(runs.ABLATIONS) + 7
    shown = {row[:2]: row for row in ablations}
    shuffled = shown["2.5", "bits and normalization shuffled"]
    assert shuffled[4] == shuffled[6] == "-1.00 ± 0.00"
    assert shown["2.5", "bits shuffled"][4] == "-0.50 ± 0.00"
    full, other = (
        found.values(
            results.Cell("resnet8", "dqmq", "mean_bit_width", 2.5, None, name),
            results.accuracy,
            "d",
        )
        for name in (None, "no_entropy")
    )
    change = np.mean([other[seed] - full[seed] for seed in range(3)])
    assert shown["2.5", "without the entropy"][6].startswith(f"{change:+.2f} ± ")
    at_8 = [
        found.values(results.Cell("resnet8", m, "mean_bit_width", 8.0), results.accuracy, "a")
        for m in ("static", "dqmq")
    ]
    change = np.mean([at_8[0][seed] - at_8[1][seed] for seed in range(3)])
    assert shown["8", "static"][4].startswith(f"{change:+.2f} ± ")
    assert shown["8", "static"][7].startswith("7.90")


def test_the_tables_of_corruptions_show_errors_and_bits_by_kind():
    ours = record("resnet8", "dqmq", 0.7, cost=2.5)
    found = results.Results([ours, record("resnet8", "float", 0.8)], 600)
    shown = rows(corruptions.mean_errors(found, "resnet8"))
    assert shown["2.5", "DQMQ"]["mCE on b, other kinds"] == "150.00 (1 seed)"
    shown = rows(corruptions.kinds(found, "resnet8"))
    assert {kind for kind, test in shown if test == "a"} == {k.replace("_", " ") for k in SEEN}
    assert shown["fog", "b"]["float error"] == "20.00 (1 seed)"
    assert shown["fog", "b"]["error at 2.5"] == "30.00 (1 seed)"
    assert shown["fog", "b"]["bits at 2.5"] == "2.50 (1 seed)"
    assert shown["clean", "c"]["bits at 2.5"] == "2.50 (1 seed)"
    assert shown["fog", "b"]["error at 4"] == "-"
    # One kind, whose error grows with its severity, seen at one severity.
    ours["scores"]["a"]["cells"]["jpeg:4"] = [400, 200, 9.0 * ours["macs"]]
    shown = {row[:3]: row[3:] for row in corruptions.severities(found, "resnet8").rows}
    assert len(shown) == 5 * len(results.KINDS) + 1
    assert shown["jpeg", "4", "a"][:5] == ("20.0", "50.0", "250", "3.00", "-")
    assert shown["jpeg", "5", "a"][:4] == ("20.0", "30.0", "150", "2.50")
    assert shown["clean", "0", "c"][:4] == ("20.0", "30.0", "150", "2.50")


def test_the_gain_of_the_oracle_is_relative_to_static_bits_of_the_same_seed():
    pairs = (("static", None, (0.7, 0.8)), ("dqmq", None, (0.71, 0.83)))
    found = results.Results(
        [
            *(record("resnet8", m, a, seed=s) for m, _, each in pairs for s, a in enumerate(each)),
            record("resnet8", "dqmq", 0.85, seed=1, ablation="told_quality"),
        ],
        600,
    )
    shown = rows(result_tables.headroom(found))
    assert shown["ResNet-8", "2.5", "DQMQ"]["a"] == "+2.00 ± 1.00"
    assert shown["ResNet-8", "2.5", "oracle"]["d"] == "+5.00 (1 seed)"
    assert shown["ResNet-8", "2.5", "oracle"]["seeds"] == "1"
    assert set(shown["ResNet-8", "2.5", "without curvature"].values()) == {"-"}


@pytest.mark.parametrize("which", ["found", "nothing"])
def test_the_markdown_is_well_formed(which, request):
    text = document.markdown(request.getfixturevalue(which), {"A picture": "a.png"})
    assert text.startswith("# ") and "![A picture](a.png)" in text
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(blocks) == len(re.findall(r"^## ", text, re.MULTILINE)) == 13
    for block in blocks:
        head, rule, *body = block.splitlines()
        assert re.fullmatch(r"\|( (:--|--:) \|)+", rule) and body
        assert {line.count("|") for line in (rule, *body)} == {head.count("|")}
    # Markdown needs an empty line before a table.
    assert not re.search(r"^[^|\n].*\n\|", text, re.MULTILINE)


@pytest.mark.parametrize("which", ["found", "nothing"])
def test_the_pictures_are_written(which, request, tmp_path):
    for draw in (figures.accuracy, figures.bits):
        path = tmp_path / f"{draw.__name__}.png"
        draw(request.getfixturevalue(which), path)
        pixels = image.imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 400
        assert (pixels.min(axis=-1) < 0.5).mean() > 0.0005


def test_the_picture_shows_every_method_at_its_cost(found, tmp_path):
    figure = figures.accuracy(found, tmp_path / "a.png")
    assert len(figure.axes) == 4
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    for method in set(results.METHODS) - {"float", "tfmot"}:
        line = lines[method]
        for budget, x, y in zip(results.MEAN_BITS, *line.get_data()):
            cells = [c for c in found.rows("resnet8", budget) if c.method == method]
            best = max(found.estimate(c, results.accuracy, "a").mean for c in cells)
            assert y == pytest.approx(best) and budget - 0.2 < x <= budget
    # Methods that are trained as DQMQ have hollow points.
    for method in ("pact", *results.TRAINED_ALIKE):
        drawn = [c for c in figure.axes[0].containers if c.get_label() == method]
        hollow = [c.lines[0].get_markerfacecolor() == "white" for c in drawn]
        assert sum(hollow) == (len(hollow) / 2 if method in results.TRAINED_ALIKE else 0)
    (legend,) = figure.legends
    beside = [figure._suptitle, *figure.axes]
    assert not any(legend.get_window_extent().overlaps(part.get_tightbbox()) for part in beside)
    # Methods that are far behind are listed as text.
    said = [text.get_text() for text in figure.axes[0].texts]
    assert any("below this frame" in text and "DoReFa w2a2" in text for text in said)


def test_the_legend_names_the_methods_that_have_runs(tmp_path):
    found = results.Results(
        [record("resnet8", "lsq", 0.7, bits=(2, 3)), record("resnet8", "float", 0.8)], 600
    )
    (legend,) = figures.accuracy(found, tmp_path / "a.png").legends
    assert [text.get_text() for text in legend.texts] == ["LSQ", "float, not quantized"]


def test_the_script_prints_the_tables_and_writes_all_files(records, tmp_path):
    path = tmp_path / "found.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records if r["run"]["seed"] == 0))
    document = tmp_path / "text" / "tables.md"
    done = subprocess.run(
        [sys.executable, str(PLOT), f"--results={path}", f"--markdown={document}",
         f"--output={tmp_path / 'pictures'}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Leads of DQMQ" in done.stdout and "(1 seed)" in done.stdout
    address = "../pictures/mixed_quality_bits.png"
    assert f"]({address})" in document.read_text() and (document.parent / address).exists()


def test_without_a_file_of_results_the_script_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, str(PLOT), f"--results={tmp_path / 'none.jsonl'}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (
        done.returncode
        and "does not exist. Run `mixed_quality.py` first" in done.stdout + done.stderr
    )
