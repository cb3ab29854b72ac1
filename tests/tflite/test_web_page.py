"""The web page in Chromium shows what the file computes, and is usable by everybody."""

import re

import numpy as np
import pytest
from helpers import web_page
from helpers.web_controls import choose, expect, png, set_severity, upload
from helpers.web_files import LABELS, SIZE, litert

import dqmq_tf
from dqmq_tf import flatbuffer, quality
from dqmq_tf.flatbuffer import TFLiteFile, checksum


def test_outputs_are_shown_as_what_they_are(tab):
    """Probabilities and sigmoids as they are, logits after a softmax, in the order of the scores."""
    script = """(values) => import("./scores.js").then(({ranked}) => ranked(values, ["a"], 2))"""
    shown = tab.evaluate(script, [0.25, 0.75, 0])
    assert shown["meaning"] == "Outputs"
    assert shown["scores"] == [{"label": "class 1", "share": 0.75}, {"label": "a", "share": 0.25}]
    assert [row["share"] for row in tab.evaluate(script, [0.9, 0.8, 0.7])["scores"]] == [0.9, 0.8]
    shown = tab.evaluate(script, [-1000, 3, 2])
    assert shown["meaning"] == "Softmax of the outputs"
    shares = [row["share"] for row in shown["scores"]]
    np.testing.assert_allclose(shares, [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))], rtol=1e-6)


def test_another_file_may_be_chosen_while_one_runs(page, files):
    page.get_by_label("Choose a picture").set_input_files(png(files.pixels[0]))
    for number in range(6):
        choose(page, "yours", f"{number}.tflite", files[("plain", "signatures")[number % 2]])
        set_severity(page, number % 3)
    choose(page, "yours", "last.tflite", files["plain"])
    expect(page.locator("#yours .facts")).to_contain_text("last.tflite")
    expect(page.locator("#yours .sweep tbody tr")).to_have_count(6)
    expect(page.locator("#yours .profile")).to_be_hidden()
    expect(page.locator("#yours .error")).to_be_empty()


def test_continuous_integration_does_not_skip_the_page(monkeypatch):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="chromium is not installed"):
        web_page.missing("chromium is not installed.")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="chromium is not installed"):
        web_page.missing("chromium is not installed.")


def test_what_is_shown_follows_the_quality(tab, files):
    choose(tab, "yours", "adaptive.tflite", files["signatures"])
    choose(tab, "other", "static.tflite", files["plain"])
    # The policy of the test is drawn by lot, so it also tells smooth pictures from smoother ones.
    kind, image = "low_resolution", files.pixels[0]
    tab.get_by_label("Choose a picture").set_input_files(png(image))
    tab.get_by_label("Degradation").select_option(kind)
    interpreter = dqmq_tf.AdaptiveInterpreter(files["signatures"])
    for severity in (0, 3, 5):
        set_severity(tab, severity)
        degraded = image
        if severity:
            degraded = quality.degrade(image, kind, severity).numpy()
        result = interpreter(degraded[None].astype("float32"))
        profile = re.compile(rf"^{result.profile[0]} \(of 2\): weights of")
        expect(tab.locator("#yours .profile dd")).to_have_text(profile)
        scores = {"yours": result.outputs[0][0]}
        scores["other"] = litert(files["plain"], degraded[None].astype("float32"))[0]
        for panel, values in scores.items():
            best = f"class {values.argmax()}{100 * values.max():.1f} %"
            expect(tab.locator(f"#{panel} .scores tbody tr").first).to_have_text(best)
            expect(tab.locator(f"#{panel} .latency dd")).to_have_text(re.compile(r"^[\d.]+ ms$"))
            at_severity = tab.locator(f"#{panel} .sweep tbody tr").nth(severity)
            expect(at_severity).to_have_attribute("aria-current", "true")
            followed = result.profile[0] if panel == "yours" else ""
            expect(at_severity).to_have_text(f"{severity}{best}{followed}")
    expect(tab.locator("#other .profile")).to_be_hidden()


def test_labels_and_facts_come_from_the_file(tab, files):
    tab.get_by_label("Choose a picture").set_input_files(png(files.pixels[3]))
    set_severity(tab, 0)
    choose(tab, "yours", "named.tflite", files["static"])
    logits = litert(files["static"], files.fed()[3:4])[0]
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    rows = tab.locator("#yours .scores tbody tr")
    expect(rows).to_have_count(5)
    for row, number in enumerate(np.argsort(-shares, kind="stable")[:5]):
        expect(rows.nth(row)).to_have_text(f"{LABELS[number]}{100 * shares[number]:.1f} %")
    facts = tab.locator("#yours .facts").inner_text()
    assert "target android" in facts and "16 × 16 BGR" in facts and "weights of 6 bits" in facts
    choose(tab, "other", "exposure.tflite", files["exposure"])
    shown = tab.locator("#other .exposure dd")
    expect(shown).to_have_text(re.compile(r"^gain [\d.]+, black -?[\d.]+$"))


def broken(files, name):
    """Contents that the page must refuse, and what it must say."""
    plain = files["plain"]
    body = plain[: -len(checksum.seal(b""))]
    if name == "not tflite":
        return b"\x89PNG, or anything else" * 9, "not a TensorFlow Lite file"
    if name == "empty":
        return b"", "not a TensorFlow Lite file"
    if name == "damaged":
        middle = len(plain) // 2
        return plain[:middle] + bytes([plain[middle] ^ 1]) + plain[middle + 1 :], "corrupt"
    if name == "cut off":
        return body[: len(body) // 3], "truncated or corrupt"
    if name == "int8":
        return files["int8"], "int8, which LiteRT.js refuses"
    model = TFLiteFile.of(body).copy().model
    graph = model.subgraphs[0]
    if name == "no image":
        graph.tensors[graph.inputs[0]].shape = np.array([1, SIZE * SIZE * 3], np.int32)
        return TFLiteFile.from_model(model).contents, "not an image"
    if name == "no classes":
        graph.tensors[graph.outputs[0]].shape = np.array([1, 2, 5], np.int32)
        return TFLiteFile.from_model(model).contents, "not one score per class"
    if name == "not allocated":
        # LiteRT.js does not throw here. It logs that the softmax wants another grid, and gives zeros.
        (softmax,) = [o for o in graph.operators if flatbuffer.operator_name(model, o) == "SOFTMAX"]
        graph.tensors[softmax.outputs[0]].quantization.scale = np.array([0.5], np.float32)
        return TFLiteFile.from_model(model).contents, "scale not near"
    assert name == "unknown operator"
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = 120
    return TFLiteFile.from_model(model).contents, "LiteRT.js cannot run this file"


@pytest.mark.parametrize(
    "name",
    [
        "not tflite",
        "empty",
        "damaged",
        "cut off",
        "int8",
        "no image",
        "no classes",
        "not allocated",
        "unknown operator",
    ],
)
def test_a_wrong_file_gets_a_clear_message(tab, files, name):
    contents, message = broken(files, name)
    tab.get_by_label("Choose a picture").set_input_files(png(files.pixels[0]))
    choose(tab, "yours", "wrong.tflite", contents)
    expect(tab.locator("#yours").get_by_role("alert")).to_contain_text(message)
    error = tab.locator("#yours .error")
    assert error.inner_text().startswith("wrong.tflite: ")
    expect(tab.locator("#yours .result")).to_be_hidden()
    # The page goes on.
    choose(tab, "yours", "right.tflite", files["plain"])
    expect(tab.locator("#yours .result")).to_be_visible()
    expect(error).to_be_empty()


def test_a_failure_is_forgotten_once_the_network_runs(tab):
    script = """async () => {
      const {FilePanel} = await import("./file_panel.js");
      const section = document.createElement("section");
      section.append(document.createElement("h2"));
      const panel = new FilePanel(section, () => {});
      const errors = [];
      const runs = [async () => { throw Error("out of memory"); }, async () => () => {}];
      panel.network = {};
      for (const run of runs) {
        await panel.withNetwork(run);
        errors.push(panel.find(".error").textContent);
      }
      return errors;
    }"""
    assert tab.evaluate(script) == ["The network failed: out of memory", ""]


def test_a_wrong_picture_gets_a_clear_message(tab):
    tab.get_by_label("Choose a picture").set_input_files(upload("photo.png", b"no picture"))
    expect(tab.locator("#picture-error")).to_contain_text("photo.png is not a picture")


def test_without_litert_js_the_page_says_so(page, files):
    page.route("**/vendor/**", lambda route: route.abort())
    page.reload()
    choose(page, "yours", "right.tflite", files["plain"])
    expect(page.locator("#yours .error")).to_contain_text("LiteRT.js did not load")


def test_works_with_the_keyboard_alone(page, files):
    # Chromium passes file choosers to the test from here on. Within the loop it would be too late.
    page.on("filechooser", lambda chooser: None)
    names = []
    while len(names) < 7:
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        names.append(
            focused.evaluate("e => e.ariaLabel || e.labels?.[0]?.innerText || e.innerText")
        )
        if "file" in names[-1] or "picture" in names[-1]:
            with page.expect_file_chooser() as chooser:
                page.keyboard.press("Space")
            is_picture = "picture" in names[-1]
            chooser.value.set_files(
                png(files.pixels[0]) if is_picture else upload("a.tflite", files["plain"])
            )
    assert names == [
        "Choose a picture",
        "Use the camera",
        "Degradation",
        "Severity",
        "Draw new noise",
        "Your file: choose a .tflite file",
        "For comparison: choose a .tflite file",
    ]
    for panel in ("yours", "other"):
        expect(page.locator(f"#{panel} .scores tbody tr")).to_have_count(5)
    set_severity(page, 4)
    slider = page.get_by_role("slider", name="Severity")
    expect(slider).to_have_attribute("aria-valuetext", "4, heavy")
    before = page.locator("#yours .seen canvas").evaluate("canvas => canvas.toDataURL()")
    page.get_by_role("button", name="Draw new noise").focus()
    page.keyboard.press("Space")
    page.wait_for_function(
        "old => document.querySelector('#yours .seen canvas').toDataURL() !== old", arg=before
    )


def test_screen_readers_hear_the_result(page, files):
    assert page.locator("html").get_attribute("lang") == "en"
    page.get_by_label("Choose a picture").set_input_files(png(files.pixels[0]))
    choose(page, "yours", "a.tflite", files["plain"])
    values = litert(files["plain"], files.floats[:1])[0]
    heard = f"class {values.argmax()}, {100 * values.max():.0f} percent"
    region = page.get_by_role("region", name="Your file")
    expect(region.get_by_role("status")).to_have_text(heard)
    expect(region.get_by_role("table", name="Outputs")).to_be_visible()
    expect(page.get_by_role("img", name="Picture: photo.png")).to_be_visible()


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_fits_the_width_without_scrolling_sideways(page, files, width):
    page.set_viewport_size({"width": width, "height": 700})
    page.get_by_label("Choose a picture").set_input_files(png(files.pixels[0]))
    choose(page, "yours", f"{'long_name_' * 12}.tflite", files["exposure"])
    choose(page, "other", f"{'long_name_' * 12}.tflite", b"wrong")
    expect(page.locator("#yours .scores tbody tr")).to_have_count(5)
    expect(page.locator("#other .error")).to_contain_text("not a TensorFlow Lite file")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for button in page.locator("button, .button, select").all():
        assert button.bounding_box()["height"] >= 44, "a finger needs 44 pixels"


def test_pictures_and_files_can_be_dropped(page, files):
    script = """({target, name, bytes}) => {
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
      const event = new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer});
      document.querySelector(target).dispatchEvent(event);
    }"""
    for target, name, contents in (
        ("#drop", "photo.png", png(files.pixels[0])["buffer"]),
        ("h1", "first.tflite", files["plain"]),
        ("#other h2", "second.tflite", files["plain"]),
    ):
        page.evaluate(script, {"target": target, "name": name, "bytes": list(contents)})
    for panel, name in (("yours", "first"), ("other", "second")):
        expect(page.locator(f"#{panel} .facts")).to_contain_text(f"{name}.tflite")
        expect(page.locator(f"#{panel} .scores tbody tr")).to_have_count(5)


def test_the_camera_gives_pictures(page, files):
    choose(page, "yours", "a.tflite", files["plain"])
    page.get_by_role("button", name="Use the camera").click()
    expect(page.locator("#yours .scores tbody tr")).to_have_count(5)
    seen = "document.querySelector('#yours .seen canvas').toDataURL()"
    first = page.evaluate(seen)
    page.wait_for_function(f"old => {seen} !== old", arg=first)  # The fake camera moves.
    page.get_by_role("button", name="Stop the camera").click()
    expect(page.get_by_role("button", name="Use the camera")).to_be_visible()
    assert page.evaluate("document.getElementById('video').srcObject") is None


def test_clicks_while_the_camera_starts_open_it_only_once(page):
    page.evaluate("""() => {
      const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      globalThis.streams = [];
      navigator.mediaDevices.getUserMedia = async (wanted) => {
        const stream = await open(wanted);
        streams.push(stream);
        return stream;
      };
      for (const _ of [1, 2, 3]) document.getElementById("camera").click();
    }""")
    page.get_by_role("button", name="Stop the camera").click()
    expect(page.get_by_role("button", name="Use the camera")).to_be_visible()
    page.wait_for_timeout(500)
    live = "streams.flatMap((stream) => stream.getTracks()).filter((t) => t.readyState === 'live')"
    assert page.evaluate(f"[streams.length, {live}.length]") == [1, 0]
