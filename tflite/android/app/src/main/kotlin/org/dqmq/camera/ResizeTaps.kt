package org.dqmq.camera

import kotlin.math.ceil
import kotlin.math.floor
import org.dqmq.camera.Preprocessing.Resize

/**
 * Which pixels of a source each pixel of the result is made from, along one axis, and their shares.
 *
 * The shares are those of `tf.image.resize` without antialiasing.
 *
 * @param from length of the source.
 * @param to length of the result.
 */
class ResizeTaps(private val from: Int, private val to: Int, rule: Resize) {
    private val firsts = IntArray(to)
    private val shares: Array<FloatArray>

    init {
        shares = Array(to) { index ->
            when (rule) {
                Resize.NEAREST -> nearest(index)
                Resize.BILINEAR -> bilinear(index)
                Resize.AREA -> area(index)
            }
        }
    }

    /** The first pixel of the source that pixel [index] of the result is made from. */
    fun first(index: Int) = firsts[index]

    /** The shares of that pixel and those behind it. Their sum is 1. */
    fun shares(index: Int) = shares[index]

    private fun nearest(index: Int): FloatArray {
        firsts[index] = minOf(((index + 0.5) * from / to).toInt(), from - 1)
        return floatArrayOf(1f)
    }

    private fun bilinear(index: Int): FloatArray {
        val center = (index + 0.5) * from / to - 0.5
        val lower = floor(center).toInt()
        firsts[index] = lower.coerceIn(0, from - 1)
        if (lower < 0 || lower + 1 > from - 1) return floatArrayOf(1f)
        val share = (center - lower).toFloat()
        return floatArrayOf(1f - share, share)
    }

    private fun area(index: Int): FloatArray {
        val begin = index.toDouble() * from / to
        val end = (index + 1.0) * from / to
        val first = floor(begin).toInt()
        firsts[index] = first
        return FloatArray(minOf(ceil(end).toInt(), from) - first) {
            val pixel = first + it
            ((minOf(pixel + 1.0, end) - maxOf(pixel.toDouble(), begin)) / (end - begin)).toFloat()
        }
    }
}
