"""The web page in Chromium computes what LiteRT computes in Python, and is usable by everybody."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from helpers import web_page
from helpers.frozen_models import batch_norm, freeze

import dqmq_tf
from dqmq_tf import flatbuffer, quality
from dqmq_tf.flatbuffer import TFLiteFile, checksum
from dqmq_tf.runtimes import in_process

layers = keras.layers
SIZE = 16
COUNT = 64
LABELS = [f"thing {number}" for number in range(10)]
FED = dqmq_tf.Preprocessing(mean=[100, 110, 120], std=[50, 60, 70], color="BGR")


def network(first=(), activation="softmax"):
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((SIZE, SIZE, 3), name="image")
    for layer in first:
        x = layer(x)
    for number, filters in enumerate((8, 16)):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv_{number}")(x)
        x = layers.MaxPooling2D()(layers.ReLU()(batch_norm(10 * number)(x)))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation=activation, name="head")(x))


def pictures():
    """Pictures of any brightness, smooth and noisy, uint8 `[64, 16, 16, 3]`."""
    random = np.random.default_rng(0)
    smooth = tf.image.resize(random.uniform(0, 255, (COUNT, 4, 4, 3)), (SIZE, SIZE)).numpy()
    dark = smooth * random.uniform(0.2, 1, (COUNT, 1, 1, 1))
    noise = random.normal(size=dark.shape) * random.uniform(0, 60, (COUNT, 1, 1, 1))
    return np.clip(dark + noise, 0, 255).round().astype("uint8")


class Files:
    """The files that the tests run, each written when it is first needed."""

    def __init__(self, folder):
        self.folder = folder
        self.pixels = pictures()
        self.floats = self.pixels.astype("float32")
        self._contents = {}

    def __getitem__(self, name):
        if name not in self._contents:
            self._contents[name] = getattr(self, name)()
        return self._contents[name]

    def write(self, qmodel, **options):
        path = self.folder / "model.tflite"
        options.setdefault("data", self.floats)
        dqmq_tf.convert(qmodel, path, verify=False, **options)
        return path.read_bytes()

    def fed(self):
        """Pixels as the file of `static` takes them."""
        mean, std = np.array([FED.mean, FED.std], "float32")
        return (self.floats[..., ::-1] - mean) / std

    def static(self):
        data = self.fed()
        qmodel = freeze(network(activation=None), data=data)
        return self.write(qmodel, data=data, labels=LABELS, preprocessing=FED)

    def exposure(self):
        self.layer = dqmq_tf.layers.Exposure(name="exposure")
        model = network([self.layer, layers.Rescaling(1 / 255)])
        self.layer.adapt(self.floats)
        self.exposed = freeze(model, data=self.floats)
        return self.write(self.exposed)

    def plain(self):
        self.plain_model = freeze(network([layers.Rescaling(1 / 255)]), data=self.floats)
        return self.write(self.plain_model)

    def int8(self):
        self["plain"]
        return self.write(self.plain_model, io_dtype="int8")

    def int4(self):
        bits = {"conv_0": 4, "conv_1": 4, "head": 4}
        model = network([layers.Rescaling(1 / 255)])
        return self.write(freeze(model, bits, target="android_small", data=self.floats))

    def adaptive_model(self):
        qmodel = dqmq_tf.quantize_model(
            network([layers.Rescaling(1 / 255)]), budget=dqmq_tf.Budget(download_bytes=5_000)
        )
        qmodel.calibrate(self.floats)
        direction = qmodel._parts.policy.direction
        direction.assign(3.0 * np.random.default_rng(1).normal(size=direction.shape))
        qmodel.freeze(profiles=2, data=self.floats)
        assigned = qmodel._parts.policy.assigned
        changed = assigned.numpy()
        changed[0, -2] = 4  # The kernel of the second convolution.
        assigned.assign(changed)
        bits = [
            [layer["kernel"].bit_width for layer in qmodel.precision(profile).weights.values()]
            for profile in range(2)
        ]
        assert bits[0] != bits[1], "profiles with equal bits would show nothing"
        return qmodel

    def signatures(self):
        return self.write(self["adaptive_model"], adaptive=2)

    def graph(self):
        return self.write(self["adaptive_model"], adaptive=2, routing="graph")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("files"))


def outputs_of(results):
    return np.array([result["outputs"][0] for result in results], "float32").reshape(
        len(results), -1
    )


def litert(contents, inputs):
    (outputs,) = in_process.signature_outputs(TFLiteFile.of(contents), [inputs])
    return outputs.reshape(len(inputs), -1)


def test_a_static_file_gives_the_same_bits(tab, files):
    results, _ = web_page.run(tab, files["static"], files.floats)
    expected = litert(files["static"], files.fed())
    np.testing.assert_array_equal(outputs_of(results), expected)
    assert len(np.unique(expected, axis=0)) > COUNT / 2
    assert {(result["profile"], result["exposure"]) for result in results} == {(None, None)}


@pytest.mark.filterwarnings("ignore:.*experimental_preserve_all_tensors")
def test_a_file_with_exposure_gives_the_same_bits_and_its_numbers(tab, files):
    contents = files["exposure"]
    results, _ = web_page.run(tab, contents, files.floats)
    np.testing.assert_array_equal(outputs_of(results), litert(contents, files.floats))
    for name, tensor in exposure_tensors(contents).items():
        found = np.float32([result["exposure"][name] for result in results])
        np.testing.assert_array_equal(found, inner_numbers(contents, tensor, files.floats))
        assert len(np.unique(found)) > 8
    gains = [result["exposure"]["gain"] for result in results]
    contrasts = files.floats.mean(-1).std((1, 2))
    assert np.corrcoef(np.log(gains), np.log(contrasts))[0, 1] < -0.9


def exposure_tensors(contents):
    """The tensors of the black point and the gain: what is subtracted, and the factor of that."""
    model = TFLiteFile.of(contents).model
    operators = [
        (flatbuffer.operator_name(model, operator), operator)
        for operator in model.subgraphs[0].operators
    ]
    (product,) = [operator for name, operator in operators if name == "MUL"]
    lifted, gain = product.inputs
    (lift,) = [
        operator for name, operator in operators if name == "SUB" and lifted in operator.outputs
    ]
    return {"black": int(lift.inputs[1]), "gain": int(gain)}


def inner_numbers(contents, tensor, inputs):
    """The values of a tensor with one number, for each input."""
    interpreter = Interpreter(model_content=contents, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    (details,) = [entry for entry in interpreter.get_tensor_details() if entry["index"] == tensor]
    scale, zero_point = details["quantization"]
    numbers = []
    for image in inputs:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        integer = int(interpreter.get_tensor(tensor).ravel()[0])
        numbers.append(np.float32(scale) * np.float32(integer - zero_point))
    return np.float32(numbers)


@pytest.mark.parametrize("routing", ["signatures", "graph"])
def test_an_adaptive_file_gives_the_same_bits_and_profiles(tab, files, routing):
    expected = dqmq_tf.AdaptiveInterpreter(files[routing])(files.floats)
    results, _ = web_page.run(tab, files[routing], files.floats)
    np.testing.assert_array_equal(outputs_of(results), expected.outputs[0])
    profiles = [result["profile"] for result in results]
    np.testing.assert_array_equal(profiles, expected.profile)
    assert set(profiles) == {0, 1}


def test_int4_weights_do_not_give_the_same_bits(tab, files):
    """If this fails, LiteRT.js has changed: README.md of the page and `docs/` say otherwise."""
    results, milliseconds = web_page.run(tab, files["int4"], files.floats)
    _, int8_milliseconds = web_page.run(tab, files["plain"], files.floats[:1])
    found, expected = outputs_of(results), litert(files["int4"], files.floats)
    equal = (found == expected).all(-1).sum()
    ratio = milliseconds / int8_milliseconds
    print(f"INT4: {equal} of {COUNT} outputs are equal; {ratio:.1f} times the time of INT8")
    assert equal < COUNT
    np.testing.assert_allclose(found, expected, atol=3 / 256)


def upload(name, contents):
    return {"name": name, "mimeType": "application/octet-stream", "buffer": contents}


def png(pixels):
    return {
        "name": "photo.png",
        "mimeType": "image/png",
        "buffer": tf.io.encode_png(pixels).numpy(),
    }


def choose(page, panel, name, contents):
    page.locator(f"#{panel} input").set_input_files(upload(name, contents))


def expect(locator):
    from playwright.sync_api import expect

    return expect(locator)


def set_severity(page, severity):
    """Moves the slider by keys, and waits until the result is that of the new position."""
    slider = page.get_by_role("slider", name="Severity")
    slider.focus()
    page.keyboard.press("Home")
    for _ in range(severity):
        page.keyboard.press("ArrowRight")


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
