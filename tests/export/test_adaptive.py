"""Adaptive files do what their profiles' own files do, bit for bit, on LiteRT and TFLM."""

import json
import warnings

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf
from helpers.frozen_models import batch_norm, freeze, images
from helpers.new_process import in_new_process
from tflite_micro.python.tflite_micro import runtime as tflm

import dqmq_tf
from dqmq_tf import export, quality
from dqmq_tf.errors import ConversionError
from dqmq_tf.export import adaptive as adaptives
from dqmq_tf.export import quality_router
from dqmq_tf.export.adaptive import inputs_and_qualities
from dqmq_tf.flatbuffer import TFLiteFile
from dqmq_tf.precision import ActivationPrecision
from dqmq_tf.runtimes import in_process

layers = keras.layers


def network(size=16):
    """A network whose file is mostly weights, that many bit-widths are open to."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((size, size, 3), name="image")
    for number, filters in enumerate((16, 32, 48, 64)):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv_{number}")(x)
        x = layers.ReLU()(batch_norm(10 * number)(x))
        x = layers.MaxPooling2D()(x) if number < 3 else x
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name="head")(x))


def prepared(target="android", profiles=2):
    """A calibrated model whose policy tells noisy from smooth inputs, frozen; and such inputs."""
    data = mixed_inputs()
    qmodel = dqmq_tf.quantize_model(
        network(), target=target, budget=dqmq_tf.Budget(download_bytes=34_000)
    )
    qmodel.calibrate(data)
    random = np.random.default_rng(1)
    direction = 3.0 * random.normal(size=qmodel._parts.policy.direction.shape)
    qmodel._parts.policy.direction.assign(direction)
    qmodel.freeze(profiles=profiles, data=data)
    return qmodel, data


def mixed_inputs(count=120):
    random = np.random.default_rng(0)
    smooth = tf.image.resize(random.uniform(size=(count, 4, 4, 3)), (16, 16)).numpy()
    noise = random.normal(size=smooth.shape) * random.uniform(0, 0.3, (count, 1, 1, 1))
    return np.clip(smooth + noise, 0, 1).astype("float32")


@pytest.fixture(scope="module")
def frozen():
    return prepared(profiles=3)


def test_the_file_does_not_depend_on_the_settings_of_keras(frozen, tmp_path):
    qmodel, x = frozen
    paths = [tmp_path / name for name in ("default.tflite", "changed.tflite")]
    options = {"adaptive": qmodel.frozen_profiles, "data": x, "verify": False}
    dqmq_tf.convert(qmodel, paths[0], **options)
    policy, data_format = keras.config.dtype_policy(), keras.config.image_data_format()
    keras.config.set_dtype_policy("mixed_float16")
    keras.config.set_image_data_format("channels_first")
    try:
        dqmq_tf.convert(qmodel, paths[1], **options)
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_image_data_format(data_format)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("io_dtype", ["float32", "int8"])
@pytest.mark.parametrize("routing", adaptives.ROUTINGS)
def test_outputs_are_those_of_the_separate_files(frozen, tmp_path, routing, io_dtype):
    qmodel, x = frozen
    path, count = tmp_path / "adaptive.tflite", qmodel.frozen_profiles
    report = dqmq_tf.convert(
        qmodel, path, adaptive=count, routing=routing, io_dtype=io_dtype, data=x, verify=False
    )
    result = dqmq_tf.AdaptiveInterpreter(path)(x)
    assert len(set(result.profile)) == count
    assert report.adaptive.router_agreement >= 0.97
    assert np.mean(result.profile == qmodel.decisions(x).profile) >= 0.97
    precisions = [qmodel.precision(profile) for profile in range(count)]
    for profile in range(count):
        own = tmp_path / "own.tflite"
        dqmq_tf.convert(qmodel, own, profile=profile, io_dtype=io_dtype, data=x, verify=False)
        chosen = result.profile == profile
        (expected,) = in_process.signature_outputs(TFLiteFile.load(own), [x[chosen]])
        np.testing.assert_array_equal(result.outputs[0][chosen], expected)
    bits = [
        {layer_path: w["kernel"].bit_width for layer_path, w in p.weights.items()}
        for p in precisions
    ]
    assert len({tuple(b.values()) for b in bits}) > 1, "equal bits would show nothing"


def test_routes_in_the_graph_on_tflm(tmp_path):
    qmodel, x = prepared("microcontroller", 3)
    path = tmp_path / "adaptive.tflite"
    dqmq_tf.convert(
        qmodel, path, adaptive=3, routing="graph", data=x, verify=False,
        artifacts=("c_array",),
    )  # fmt: skip
    header = path.with_suffix(".h").read_text()
    assert "resolver.AddIf();" in header and "using Output1Type = std::int32_t;" in header
    file = TFLiteFile.load(path)
    whole = tflm.Interpreter.from_bytes(file.contents, arena_size=500_000)
    parts = [
        tflm.Interpreter.from_bytes(network.contents, arena_size=500_000)
        for network in adaptives.split_profiles(file)
    ]
    details = whole.get_input_details(0)["quantization_parameters"]
    scale, zero_point = details["scales"][0], details["zero_points"][0]
    seen = set()
    for image in x[:40]:
        integers = np.clip(np.rint(image[None] / scale) + zero_point, -128, 127).astype("int8")
        whole.set_input(integers, 0)
        whole.invoke()
        profile = int(np.ravel(whole.get_output(1))[0])
        parts[profile].set_input(integers, 0)
        parts[profile].invoke()
        np.testing.assert_array_equal(whole.get_output(0), parts[profile].get_output(0))
        seen.add(profile)
    assert len(seen) == 3


def test_two_profiles_share_what_they_have_in_common(tmp_path):
    qmodel, x = prepared()
    report = dqmq_tf.convert(qmodel, tmp_path / "a.tflite", adaptive=2, data=x, verify=False)
    assert report.size_bytes <= 1.7 * max(report.adaptive.profile_bytes)
    assert report.size_bytes > 1.1 * max(report.adaptive.profile_bytes)


def test_report_tells_shares_per_quality(frozen, tmp_path):
    qmodel, x = frozen
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x)))).batch(32)
    data = quality.mixed_quality(data, kinds=("gaussian_noise",), clean=0.5, with_quality=True)
    report = dqmq_tf.convert(
        qmodel, tmp_path / "a.tflite", adaptive=qmodel.frozen_profiles, data=data, verify=False
    )
    assert set(report.adaptive.shares) == {"all", "clean", "gaussian_noise"}
    assert all(abs(sum(shares) - 1) < 1e-6 for shares in report.adaptive.shares.values())
    assert json.loads(report.to_json())["adaptive"]["routing"] == "signatures"
    console = rich.console.Console(width=100, record=True, quiet=True)
    console.print(report)


def test_shares_of_shuffled_data_are_those_of_the_same_inputs(frozen, tmp_path):
    qmodel, x = frozen
    kinds = {"kind": qmodel.decisions(x).profile}
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x)), kinds)).shuffle(len(x))
    # Of data without an end, the conversion takes the first inputs.
    for form in (data.batch(32), data, data.repeat().batch(32)):
        report = dqmq_tf.convert(qmodel, tmp_path / "a.tflite", adaptive=3, data=form, verify=False)
        shares = list(report.adaptive.shares.values())[1:]
        # Each kind has the inputs of one profile, so its shares are 1 and 0 up to the router's.
        assert len(shares) == 3 and all(max(share) > 0.9 for share in shares)


def test_labels_of_an_output_named_kind_are_no_quality():
    x = np.zeros((4, 3), "float32")
    inputs = keras.Input((3,))
    outputs = {key: keras.layers.Dense(2, name=key)(inputs) for key in ("kind", "color")}
    qmodel = dqmq_tf.quantize_model(keras.Model(inputs, outputs))
    labels = {key: np.full(4, 99) for key in outputs}
    drawn = {"kind": np.zeros(4), "severity": np.zeros(4)}
    for element, qualities in (
        ((x, labels), None),
        ((x, {"kind": labels["kind"]}), None),
        ((x, labels, drawn), ["clean"] * 4),
    ):
        data = tf.data.Dataset.from_tensor_slices(element).batch(2)
        assert inputs_and_qualities(data, qmodel, 4)[1] == qualities


@pytest.mark.parametrize("routing", ["signatures", "graph"])
def test_arrays_that_are_not_one_for_each_input_are_refused(routing, frozen, tmp_path):
    qmodel, x = frozen
    path = tmp_path / "a.tflite"
    dqmq_tf.convert(qmodel, path, adaptive=3, data=x, verify=False, routing=routing)
    interpreter = dqmq_tf.AdaptiveInterpreter(path)
    for batches in ([x[:2], x[2:4]], list(x[:2])):
        with pytest.raises(ValueError, match="takes 1 input, but there are 2 arrays"):
            interpreter(batches)


@pytest.mark.parametrize("kind", [-1, len(quality.KINDS) + 1])
def test_shares_of_an_unknown_kind_are_refused(kind, frozen, tmp_path):
    qmodel, x = frozen
    kinds = {"kind": np.full(len(x), kind)}
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x)), kinds)).batch(32)
    with pytest.raises(ValueError, match=f"Found {kind} to {kind}"):
        dqmq_tf.convert(qmodel, tmp_path / "a.tflite", adaptive=3, data=data, verify=False)


def test_verify_takes_the_profiles_apart(frozen, tmp_path):
    qmodel, x = frozen
    path = tmp_path / "a.tflite"
    dqmq_tf.convert(
        qmodel, path, adaptive=qmodel.frozen_profiles, data=x, verify=False, routing="graph"
    )
    reports = dqmq_tf.verify(qmodel, path, x[:20]).profiles
    assert [report.different_numbers for report in reports] == [0] * qmodel.frozen_profiles
    assert all(report.checked_numbers > 40_000 for report in reports)
    other = freeze(network(), profiles=qmodel.frozen_profiles)
    with pytest.raises(dqmq_tf.VerificationError, match="another model"):
        dqmq_tf.verify(other, path, x[:20])


def test_a_file_says_once_how_to_feed_it(frozen, tmp_path):
    qmodel, x = frozen
    path, labels = tmp_path / "adaptive.tflite", [f"class {number}" for number in range(10)]
    dqmq_tf.convert(
        qmodel, path, adaptive=qmodel.frozen_profiles, data=x, verify=False, labels=labels,
        preprocessing={"image": dqmq_tf.Preprocessing(std=255)},
    )  # fmt: skip
    facts = export.read_metadata(path)
    assert facts["labels"] == labels
    assert facts["inputs"] == {"image": {"mean": [0] * 3, "std": [255] * 3, "color": "RGB"}}
    assert len(facts["profiles"]) == qmodel.frozen_profiles
    assert not any({"labels", "inputs"} & set(profile) for profile in facts["profiles"])
    assert dqmq_tf.AdaptiveInterpreter(path)(x[:4]).profile.shape == (4,)


def test_freezes_by_the_data(tmp_path):
    qmodel, x = prepared(profiles=1)
    dqmq_tf.convert(qmodel, tmp_path / "a.tflite", adaptive=2, data=x, verify=False)
    assert qmodel.frozen_profiles == 2


def test_profiles_that_differ_are_not_said_to_be_equal(tmp_path):
    qmodel, x = prepared()
    first, second = keras.ops.convert_to_numpy(qmodel._parts.policy.assigned)[:2]
    assert not np.array_equal(first, second)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*have the same bits")
        dqmq_tf.convert(qmodel, tmp_path / "a.tflite", adaptive=2, data=x, verify=False)


def test_it_does_not_matter_which_of_two_equal_profiles_is_chosen(tmp_path):
    qmodel, x = prepared()
    assigned = keras.ops.convert_to_numpy(qmodel._parts.policy.assigned).copy()
    assigned[1] = assigned[0]
    qmodel._parts.policy.assigned.assign(assigned)
    with pytest.warns(UserWarning, match="profiles 0 and 1 have the same bits") as caught:
        report = dqmq_tf.convert(qmodel, tmp_path / "a.tflite", adaptive=2, data=x, verify=False)
    assert report.adaptive.router_agreement == 1.0
    assert __file__ in [warning.filename for warning in caught]


def test_requests_that_cannot_be(small, tmp_path):
    path, x = tmp_path / "a.tflite", images(small, 8)
    for count in (5, 2.0, True):
        with pytest.raises(ValueError, match=f"adaptive={count}: give 2, 3 or 4"):
            dqmq_tf.convert(small, path, adaptive=count, data=x)
    with pytest.raises(ValueError, match="routing='switch'"):
        dqmq_tf.convert(small, path, adaptive=2, routing="switch", data=x)
    with pytest.raises(ValueError, match="data="):
        dqmq_tf.convert(small, path, adaptive=2)
    with pytest.raises(ConversionError, match="routing='graph'"):
        dqmq_tf.convert(prepared("microcontroller")[0], path, adaptive=2, data=x)
    assert not path.exists()


def test_interpreter_refuses_other_files(small_file, frozen, tmp_path):
    with pytest.raises(ConversionError, match="one precision profile"):
        export.AdaptiveInterpreter(small_file[0])
    qmodel, x = frozen
    path = tmp_path / "a.tflite"
    dqmq_tf.convert(qmodel, path, adaptive=qmodel.frozen_profiles, data=x, verify=False)
    interpreter = export.AdaptiveInterpreter(path)
    with pytest.raises(ValueError, match="no inputs"):
        interpreter(x[:0])
    with pytest.raises(ValueError, match=r"takes \(16, 16, 3\)"):
        interpreter(x[:, :8])


def test_the_interpreter_passes_integers_on_as_they_are(tmp_path):
    keras.utils.set_random_seed(0)
    image, number = keras.Input((8, 8, 3)), keras.Input((1,), dtype="int32")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    digit = keras.ops.cast(number % 10, "float32")
    model = keras.Model([image, number], layers.Dense(2)(layers.Concatenate()([x, digit])))
    images, numbers = np.zeros((64, 8, 8, 3), "float32"), np.arange(64)[:, None]
    qmodel = dqmq_tf.quantize_model(model, budget=dqmq_tf.Budget(size_bytes=10**6))
    qmodel.calibrate([images, numbers])
    path, data = tmp_path / "a.tflite", [images, numbers]
    dqmq_tf.convert(qmodel, path, adaptive=2, data=data, verify=False)
    # The nearest number of float32 is the one below.
    large = np.array([[2**24 + 1], [2**24]])
    (output,) = dqmq_tf.AdaptiveInterpreter(path)([images[:2], large]).outputs
    assert not np.array_equal(*output)


_LATENCY = """
import numpy as np, keras, tempfile
from dqmq_tf.export import quality_router
from dqmq_tf.lowering import float_file
from dqmq_tf.policy.bit_width_policy import BitWidthPolicy
from dqmq_tf.policy.quality_encoder import QualityEncoder
from dqmq_tf.precision import ActivationPrecision
from dqmq_tf.runtimes import in_process
from litert_quantizer import quantizer, recipe

network = keras.applications.MobileNetV2((96, 96, 3), weights=None)
writer = quantizer.Quantizer(float_file.export_float(network).contents)
writer.load_quantization_recipe(recipe.static_wi8_ai8())
images = np.random.default_rng(0).uniform(size=(8, 96, 96, 3)).astype("float32")
name = next(iter(network.inputs)).name
ranges = writer.calibrate({"serving_default": [{"input_0": image[None]} for image in images]})
int8 = in_process.interpreter(bytes(writer.quantize(ranges).quantized_model))

class Parts:
    encoder = QualityEncoder.for_model((None, 96, 96, 3), 54e6 * 64, 8)
    policy = BitWidthPolicy([], [(4, 8)] * 3)

class Frozen:
    _parts = Parts

Parts.encoder(images)
Parts.encoder.calibrate(images)
Parts.policy(Parts.encoder(images))
Parts.policy.profiles = 2
grid = ActivationPrecision(step=1 / 255, zero_point=0, bit_width=8)
routes = in_process.interpreter(quality_router.build_router(Frozen, images, grid).contents)
pairs = [
    (in_process.median_milliseconds(routes, 200), in_process.median_milliseconds(int8, 40))
    for _ in range(7)
]
print(np.median([a / b for a, b in pairs]))
"""


@pytest.mark.parametrize("shape", [(24,), (24, 3)])
def test_router_takes_inputs_of_one_column(shape):
    # Filters for horizontal edges do not respond to them, and XNNPACK takes no scale of 1000.
    random = np.random.default_rng(0)
    data = random.normal(size=(64, *shape)) * random.uniform(0.1, 3, (64, *[1] * len(shape)))
    data = data.astype("float32")
    model = keras.Sequential([keras.Input(shape), layers.Dense(16), layers.Dense(4)])
    qmodel = dqmq_tf.quantize_model(model)
    qmodel.calibrate(data)
    qmodel.freeze(profiles=2, data=data)
    step, zero_point = qmodel._parts.quantizers[0].values(8)
    grid = ActivationPrecision(step=step, zero_point=zero_point, bit_width=8)
    router = quality_router.build_router(qmodel, data, grid)
    profile, score, *_ = in_process.signature_outputs(router, [data[:1]])
    assert profile in (0, 1) and np.isfinite(score).all()


def test_router_costs_little_beside_a_mobilenet():
    share = float(in_new_process(_LATENCY, timeout=300).split()[-1])
    # Up to 3 % on most processors; 3.6 % on one whose int8 kernels are faster, at the same code.
    assert share <= 0.05, f"{100 * share:.1f} % of the int8 latency"
