package org.dqmq.camera

import java.nio.ByteBuffer
import java.nio.FloatBuffer

/**
 * Brings camera frames to the size and scale that a network takes.
 *
 * The largest centred part of the frame with the network's aspect ratio is taken, and every input
 * pixel is the mean of the frame's pixels that it covers: frames are far larger than inputs, and
 * single samples would alias.
 *
 * @param width width of the network's input, in pixels.
 * @param height its height.
 * @param scale what a value of 0 to 255 is multiplied by.
 */
class FrameScaler(private val width: Int, private val height: Int, private val scale: Float) {
    private val sums = FloatArray(width * CHANNELS)
    private var row = ByteArray(0)

    /**
     * Fills [target] with `height x width x 3` floats, from its beginning.
     *
     * @param frame RGBA, a byte each, rows of [rowStride] bytes.
     */
    fun fill(frame: ByteBuffer, frameWidth: Int, frameHeight: Int, rowStride: Int, target: FloatBuffer) {
        val cropWidth = minOf(frameWidth, frameHeight * width / height).coerceAtLeast(1)
        val cropHeight = minOf(frameHeight, frameWidth * height / width).coerceAtLeast(1)
        val left = (frameWidth - cropWidth) / 2
        val top = (frameHeight - cropHeight) / 2
        val source = frame.duplicate()
        if (row.size < cropWidth * BYTES_PER_PIXEL) row = ByteArray(cropWidth * BYTES_PER_PIXEL)
        target.rewind()
        for (y in 0 until height) {
            val first = y * cropHeight / height
            val last = maxOf(first + 1, (y + 1) * cropHeight / height)
            sums.fill(0f)
            for (line in first until last) {
                source.position((top + line) * rowStride + left * BYTES_PER_PIXEL)
                source.get(row, 0, cropWidth * BYTES_PER_PIXEL)
                addRow(cropWidth)
            }
            for (x in 0 until width) {
                val factor = scale / ((last - first) * covered(x, cropWidth))
                for (channel in 0 until CHANNELS) target.put(sums[x * CHANNELS + channel] * factor)
            }
        }
        target.rewind()
    }

    private fun addRow(cropWidth: Int) {
        for (x in 0 until width) {
            val first = x * cropWidth / width
            for (column in first until first + covered(x, cropWidth)) {
                for (channel in 0 until CHANNELS) {
                    val value = row[column * BYTES_PER_PIXEL + channel].toInt() and 0xFF
                    sums[x * CHANNELS + channel] += value.toFloat()
                }
            }
        }
    }

    private fun covered(x: Int, cropWidth: Int) =
        maxOf(1, (x + 1) * cropWidth / width - x * cropWidth / width)

    companion object {
        const val CHANNELS = 3
        private const val BYTES_PER_PIXEL = 4
    }
}
