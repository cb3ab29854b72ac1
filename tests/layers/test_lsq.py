import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dqmq_tf.layers import lsq, step_fitting
from dqmq_tf.policy import decision_tensor

BITS = tuple(range(2, 9))
ACTIVATION_LIMITS = [(0.0, 15.0), (-3.0, 12.0), (0.0, 3.0), (-128.0, 127.0)]

# All examples have one shape, because XLA compiles each shape separately. The numbers have few
# digits, so that a value on a limit in NumPy is on it in XLA as well, which drops subnormal numbers.
values = st.lists(st.integers(-800, 800), min_size=12, max_size=12).map(
    lambda x: np.array(x, "float32") / 16
)
steps = st.integers(1, 64).map(lambda n: n / 16)


def as_parameters(step, q_min, q_max):
    return tuple(tf.constant([v], tf.float32) for v in (step, q_min, q_max))


def reference(x, step, q_min, q_max):
    return np.clip(np.round(x / step), q_min, q_max) * step


@pytest.mark.parametrize("zero_point", [0, 100, 128, 255])
@pytest.mark.parametrize("count", [2, 3, 4, 36, 1000])
def test_means_round_as_average_pools_do(zero_point, count):
    sums = np.random.default_rng(count).integers(-128 * count, 127 * count + 1, 2000)
    # The kernels divide in integers, which rounds to zero.
    int8 = np.trunc((sums + np.sign(sums) * (count // 2)) / count)
    # A mean of float32, in which exact ties are rare.
    ratio = (sums / count - (zero_point - 128)).astype("float32")
    step = np.float32(0.0373)
    parameters = as_parameters(step, -zero_point, 255 - zero_point)
    x = tf.constant(ratio * step)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = lsq.quantize(x, *parameters, are_means=True)
    np.testing.assert_array_equal(np.round(y / step), int8 - (zero_point - 128))
    inside = (x >= -zero_point * step) & (x <= (255 - zero_point) * step)
    np.testing.assert_array_equal(tape.gradient(y, x), tf.cast(inside, tf.float32))


@pytest.mark.parametrize("bits", BITS)
def test_weight_limits_are_symmetric_and_narrow(bits):
    q_min, q_max = lsq.weight_limits(float(bits))
    assert q_max == 2 ** (bits - 1) - 1
    assert q_min == -q_max


@settings(max_examples=40, deadline=None)
@given(x=values, step=steps, bits=st.sampled_from(BITS), share=st.floats(0, 1))
def test_quantized_values_lie_on_the_grid_and_stay_when_quantized_again(x, step, bits, share):
    zero_point = np.float32(np.round(share * (2.0**bits - 1)))
    parameters = as_parameters(step, -zero_point, 2.0**bits - 1 - zero_point)
    once = lsq.quantize(tf.constant(x), *parameters).numpy()
    integers = once / np.float32(step)
    np.testing.assert_allclose(integers, np.round(integers), atol=1e-4)
    assert np.round(integers).min() >= -zero_point
    assert np.round(integers).max() <= 2**bits - 1 - zero_point
    np.testing.assert_array_equal(lsq.quantize(tf.constant(once), *parameters), once)


@settings(max_examples=40, deadline=None)
@given(x=values, step=steps, limits=st.sampled_from(ACTIVATION_LIMITS))
def test_error_is_half_a_step_inside_the_limits_and_order_is_kept(x, step, limits):
    parameters = as_parameters(step, *limits)
    y = lsq.quantize(tf.constant(x), *parameters).numpy()
    inside = (x >= limits[0] * step) & (x <= limits[1] * step)
    assert np.all(np.abs(y - x)[inside] <= step / 2 * (1 + 1e-4))
    assert np.all(np.diff(y[np.argsort(x, kind="stable")]) >= 0)


@settings(max_examples=40, deadline=None)
@given(x=values, upstream=values, step=steps, limits=st.sampled_from(ACTIVATION_LIMITS))
def test_gradients_are_those_of_lsq(x, upstream, step, limits):
    step_, q_min, q_max = as_parameters(step, *limits)
    x_ = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch([x_, step_])
        y = lsq.quantize(x_, step_, q_min, q_max)
    to_x, to_step = tape.gradient(y, [x_, step_], tf.constant(upstream))
    ratio = x / np.float32(step)
    inside = (ratio >= limits[0]) & (ratio <= limits[1])
    np.testing.assert_array_equal(to_x, np.where(inside, upstream, 0.0))
    slope = np.where(inside, np.round(ratio) - ratio, np.clip(ratio, *limits))
    np.testing.assert_allclose(to_step, [np.sum(upstream * slope)], rtol=1e-3, atol=1e-2)


def test_step_gradient_is_summed_over_the_axes_that_share_a_step():
    x = np.random.default_rng(0).normal(size=(4, 3, 5)).astype("float32")
    for shape in [(1, 1, 1), (4, 1, 1), (1, 1, 5), (4, 3, 5)]:
        step = tf.fill(shape, 0.25)
        with tf.GradientTape() as tape:
            tape.watch(step)
            y = lsq.quantize(tf.constant(x), step, tf.fill(shape, -3.0), tf.fill(shape, 3.0))
        found = tape.gradient(y, step)
        ratio = x / 0.25
        each = np.where(np.abs(ratio) <= 3, np.round(ratio) - ratio, np.clip(ratio, -3, 3))
        axes = tuple(i for i, n in enumerate(shape) if n == 1)
        np.testing.assert_allclose(found, each.sum(axes, keepdims=True), rtol=1e-4, atol=1e-4)


def test_step_gradient_descends_to_the_best_step():
    # Straight-through gradients are biased in general. For a whole tensor, however, the LSQ gradient
    # of the squared error must point to a step with a smaller error.
    x = tf.constant(np.random.default_rng(1).normal(size=4096), tf.float32)
    log_step = tf.Variable([np.log(2.0)], dtype=tf.float32)

    def error():
        y = lsq.quantize(x, tf.exp(log_step), tf.constant([-3.0]), tf.constant([3.0]))
        return tf.reduce_mean(tf.square(y - x))

    before = float(error())
    for _ in range(60):
        with tf.GradientTape() as tape:
            loss = error()
        log_step.assign_sub(0.5 * tape.gradient(loss, log_step))
    best = min(
        np.mean(np.square(reference(x.numpy(), s, -3, 3) - x.numpy()))
        for s in np.linspace(0.2, 2, 90)
    )
    assert float(error()) < 0.3 * before
    assert float(error()) < 1.25 * best


def test_step_zero_passes_the_tensor_and_its_gradient_unchanged():
    x = tf.constant([[-3.0, 0.3], [1e6, 0.1]])
    step = tf.constant([[0.0], [0.1]])
    with tf.GradientTape() as tape:
        tape.watch([x, step])
        y = lsq.quantize(x, step, tf.zeros((2, 1)), tf.fill((2, 1), 15.0))
    to_x, to_step = tape.gradient(y, [x, step])
    np.testing.assert_array_equal(y[0], x[0])
    np.testing.assert_allclose(y[1], [1.5, 0.1])
    np.testing.assert_array_equal(to_x, [[1, 1], [0, 1]])
    assert to_step[0, 0] == 0.0
    assert np.isfinite(to_step).all()


def test_rounding_is_half_to_even_as_in_numpy():
    x = tf.constant([0.5, 1.5, 2.5, -0.5])
    y = lsq.quantize(x, *as_parameters(1.0, -8.0, 7.0))
    np.testing.assert_array_equal(y, np.round(x))


def relaxed(x, low, high, executed, mean, slope):
    return lsq.relaxed_quantize(x, executed, low, high, mean, slope)


@pytest.mark.parametrize("per_sample", [True, False])
def test_the_gradient_of_the_mean_is_the_weighted_change_from_low_to_high(per_sample):
    rng = np.random.default_rng(3)
    x, upstream = rng.normal(size=(2, 4, 3)).astype("float32")
    shape = (4, 1) if per_sample else (1, 1)
    low = (tf.fill(shape, 0.7), tf.fill(shape, -1.0), tf.fill(shape, 1.0))
    high = (tf.fill(shape, 0.3), tf.fill(shape, -3.0), tf.fill(shape, 3.0))
    slope = tf.constant(rng.uniform(0.5, 2, size=shape), tf.float32)
    mean, x_, step = tf.fill(shape, 2.4), tf.constant(x), high[0]
    with tf.GradientTape() as tape:
        tape.watch([x_, mean, step])
        y = relaxed(x_, low, high, (step, *high[1:]), mean, slope)
    to_x, to_mean, to_step = tape.gradient(y, [x_, mean, step], tf.constant(upstream))
    change = reference(x, 0.3, -3, 3) - reference(x, 0.7, -1, 1)
    product = upstream * change
    expected = product.sum(1, keepdims=True) if per_sample else product.sum(keepdims=True)
    np.testing.assert_allclose(to_mean, slope.numpy() * expected, rtol=1e-4, atol=1e-5)
    # Apart from that, it is the plain quantizer at the executed candidate.
    np.testing.assert_allclose(y, reference(x, 0.3, -3, 3), atol=1e-6)
    np.testing.assert_array_equal(to_x, np.where(np.abs(x) <= 0.9, upstream, 0))
    assert to_step.shape == shape


@pytest.mark.parametrize("gap", [1.0, 2.0])
@pytest.mark.parametrize("probability", [0.2, 0.5, 0.7])
def test_trapezoid_is_exact_for_a_quadratic_loss(gap, probability):
    # The expected pathwise gradient over the executed end is (loss(high) - loss(low)) / gap.
    rng = np.random.default_rng(4)
    x, target = (tf.constant(rng.normal(size=(1, 20)), tf.float32) for _ in range(2))
    low = tuple(tf.constant([[v]]) for v in (0.8, -1.0, 1.0))
    high = tuple(tf.constant([[v]]) for v in (0.2, -7.0, 7.0))
    curvature = tf.constant(rng.uniform(0.1, 2, size=(1, 20)), tf.float32)
    mean = tf.constant([[3.0]])
    losses, gradients = [], []
    for executed, p in ((low, 1 - probability), (high, probability)):
        slope = decision_tensor.trapezoid_slope(tf.constant([[p]]), gap)
        with tf.GradientTape() as tape:
            tape.watch(mean)
            y = relaxed(x, low, high, executed, mean, slope)
            loss = tf.reduce_sum(curvature * tf.square(y - target))
        losses.append(float(loss))
        gradients.append(p * float(tape.gradient(loss, mean)[0, 0]))
    np.testing.assert_allclose(sum(gradients), (losses[1] - losses[0]) / gap, rtol=1e-4)


def test_trapezoid_slope_is_bounded_if_an_end_is_rare():
    slopes = decision_tensor.trapezoid_slope(
        tf.constant([0.0, 1e-9, 0.05, 0.125, 1.0]), 1.0
    ).numpy()
    np.testing.assert_allclose(slopes, [4, 4, 4, 4, 0.5])


@pytest.mark.parametrize("how", ["eager", "graph", "jit"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_quantizers_run_eagerly_in_graphs_and_compiled_in_any_precision(how, dtype):
    def run(x, step, mean):
        limits = tf.constant([-3.0]), tf.constant([3.0])
        low = (2.0 * step, tf.constant([-1.0]), tf.constant([1.0]))
        with tf.GradientTape() as tape:
            tape.watch([x, step, mean])
            plain = lsq.quantize(x, step, *limits)
            both = plain + relaxed(
                x, low, (step, *limits), (step, *limits), mean, tf.constant([0.5])
            )
        return both, *tape.gradient(both, [x, step, mean])

    if how != "eager":
        run = tf.function(run, jit_compile=how == "jit")
    x = tf.cast([-1.0, 0.25, 0.5, 2.0], dtype)
    both, to_x, to_step, to_mean = run(x, tf.constant([0.25]), tf.constant([2.5]))
    assert both.dtype == to_x.dtype == x.dtype
    assert to_step.dtype == to_mean.dtype == tf.float32
    np.testing.assert_array_equal(tf.cast(both, tf.float32), [-1.5, 0.5, 1.0, 1.5])
    np.testing.assert_array_equal(tf.cast(to_x, tf.float32), [0, 2, 2, 0])
    # Half of Q_high - Q_low, summed: -0.25 + 0.25 + 0 + 0.25, where 0.25 / 0.5 rounds to even.
    np.testing.assert_allclose(to_mean, [0.5 * 0.25])


def test_large_float16_values_do_not_overflow():
    x = tf.constant([60000.0, -60000.0], tf.float16)
    y = lsq.quantize(x, *as_parameters(1e-4, -3.0, 3.0))
    np.testing.assert_allclose(tf.cast(y, tf.float32), [3e-4, -3e-4], rtol=1e-3)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "shape,axes", [((3, 3, 4, 6), (3,)), ((3, 3, 5, 2), (2, 3)), ((40, 7), (-1,))]
)
def test_fitted_weight_steps_are_no_worse_than_the_largest_value(bits, shape, axes):
    rng = np.random.default_rng(bits)
    weights = rng.normal(size=shape) * rng.lognormal(size=shape[-1])
    step = step_fitting.fit_weight_steps(weights, axes, (bits,))[0]
    positive = [axis % len(shape) for axis in axes]
    assert step.shape == tuple(n if i in positive else 1 for i, n in enumerate(shape))
    assert np.all(step > 0)
    q_min, q_max = lsq.weight_limits(bits)
    rest = tuple(i for i in range(len(shape)) if i not in positive)
    plain = np.abs(weights).max(rest, keepdims=True) / q_max

    def error(s):
        return np.square(reference(weights, s, q_min, q_max) - weights).mean(rest)

    assert np.all(error(step) <= error(plain) * (1 + 1e-5))
    if bits == 2 and len(rest) > 1:
        assert error(step).mean() < 0.8 * error(plain).mean()


def test_fitted_weight_steps_have_a_row_per_candidate_and_support_zeros_and_large_kernels():
    weights = np.zeros((2, 3))
    assert step_fitting.fit_weight_steps(weights, (1,), (2, 4, 8)).shape == (3, 1, 3)
    assert np.isfinite(step_fitting.fit_weight_steps(weights, (1,), (2, 4, 8))).all()
    large = np.random.default_rng(0).normal(size=(10_000, 2))
    fitted = step_fitting.fit_weight_steps(large, (1,), (4,))[0]
    full = step_fitting.fit_weight_steps(large, (1,), (4,), samples=10_000)[0]
    np.testing.assert_allclose(fitted, full, rtol=0.3)


@settings(max_examples=40, deadline=None)
@given(
    data=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    bits=st.sampled_from(BITS),
)
def test_fitted_activation_ranges_hold_zero_exactly(data, bits):
    data = np.array(data, "float32")
    step, zero_point = (a[0] for a in step_fitting.fit_activation_range(data, (bits,)))
    assert zero_point == np.round(zero_point)
    assert 0 <= zero_point <= 2**bits - 1
    assert step >= 0 and np.isfinite(step)
    if data.min() >= 0:
        assert zero_point == 0
    if data.max() <= 0 and data.min() < 0:
        assert zero_point == 2**bits - 1


def test_fitted_activation_range_clips_outliers_at_few_bits_only():
    data = np.random.default_rng(0).exponential(size=20_000).astype("float32")
    steps, zero_points = step_fitting.fit_activation_range(data, (2, 4, 8))
    np.testing.assert_array_equal(zero_points, 0)
    reach = steps * (2.0 ** np.array([2, 4, 8]) - 1)
    assert reach[0] < reach[1] < reach[2]
    for step, levels in zip(steps, (3, 15, 255)):
        best = min(
            np.mean(np.square(reference(data, s, 0, levels) - data))
            for s in data.max() / levels * np.linspace(0.05, 1, 60)
        )
        assert np.mean(np.square(reference(data, step, 0, levels) - data)) <= 1.1 * best


def test_fitted_activation_range_of_a_tensor_that_is_all_zero_is_usable():
    steps, zero_points = step_fitting.fit_activation_range(np.zeros(5, "float32"), BITS)
    assert np.all(steps > 0)
    np.testing.assert_array_equal(zero_points, 0)


def test_fitted_activation_range_of_a_tensor_that_vanishes_has_steps_that_a_file_can_hold():
    values = np.random.default_rng(0).normal(size=50).astype("float32") * 1e-12
    steps, _ = step_fitting.fit_activation_range(values, BITS)
    assert np.all(steps * 255 >= 1e-9)  # litert-quantizer makes no smaller range.


@pytest.mark.parametrize("bits", BITS)
def test_weight_integers_stay_within_their_bits(bits):
    weights = np.random.default_rng(0).normal(size=(50, 3))
    integers = step_fitting.weight_integers(weights, np.array([[0.01, 0.1, 10.0]]), bits)
    assert integers.dtype == np.int32
    assert np.abs(integers).max() == 2 ** (bits - 1) - 1
    assert np.all(integers[:, 2] == np.round(weights[:, 2] / 10.0))
