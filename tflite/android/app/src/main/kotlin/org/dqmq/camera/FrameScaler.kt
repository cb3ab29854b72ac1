package org.dqmq.camera

import java.nio.ByteBuffer
import java.nio.FloatBuffer
import org.dqmq.camera.Preprocessing.Color

/**
 * Brings camera frames to the size, the channels and the scale that a network takes.
 *
 * The largest centered part of the frame with the network's aspect ratio is taken, and resized by the
 * rule of the file.
 *
 * @param width width of the network's input, in pixels.
 * @param height its height.
 * @param preprocessing what the file says about its input.
 */
class FrameScaler(
    private val width: Int,
    private val height: Int,
    private val preprocessing: Preprocessing,
) {
    private val sums = FloatArray(width * RGB)
    private var row = ByteArray(0)

    /**
     * Fills [target] with `height x width x channels` floats, from its beginning.
     *
     * @param frame RGBA, a byte each, rows of [rowStride] bytes.
     */
    fun fill(frame: ByteBuffer, frameWidth: Int, frameHeight: Int, rowStride: Int, target: FloatBuffer) {
        val cropWidth = minOf(frameWidth, frameHeight * width / height).coerceAtLeast(1)
        val cropHeight = minOf(frameHeight, frameWidth * height / width).coerceAtLeast(1)
        val left = (frameWidth - cropWidth) / 2
        val top = (frameHeight - cropHeight) / 2
        val columns = ResizeTaps(cropWidth, width, preprocessing.resize)
        val rows = ResizeTaps(cropHeight, height, preprocessing.resize)
        val source = frame.duplicate()
        if (row.size < cropWidth * BYTES_PER_PIXEL) row = ByteArray(cropWidth * BYTES_PER_PIXEL)
        target.rewind()
        for (y in 0 until height) {
            sums.fill(0f)
            rows.shares(y).forEachIndexed { line, share ->
                source.position((top + rows.first(y) + line) * rowStride + left * BYTES_PER_PIXEL)
                source.get(row, 0, cropWidth * BYTES_PER_PIXEL)
                addRow(columns, share)
            }
            for (x in 0 until width) put(x * RGB, target)
        }
        target.rewind()
    }

    private fun addRow(columns: ResizeTaps, rowShare: Float) {
        for (x in 0 until width) {
            val shares = columns.shares(x)
            var at = columns.first(x) * BYTES_PER_PIXEL
            for (share in shares) {
                for (channel in 0 until RGB) {
                    val value = row[at + channel].toInt() and 0xFF
                    sums[x * RGB + channel] += rowShare * share * value
                }
                at += BYTES_PER_PIXEL
            }
        }
    }

    private fun put(at: Int, target: FloatBuffer) {
        when (preprocessing.color) {
            Color.RGB -> for (channel in 0 until RGB) target.put(normalized(sums[at + channel], channel))
            Color.BGR -> for (channel in 0 until RGB) target.put(normalized(sums[at + RGB - 1 - channel], channel))
            Color.GRAY -> target.put(
                normalized(RED * sums[at] + GREEN * sums[at + 1] + BLUE * sums[at + 2], 0),
            )
        }
    }

    private fun normalized(pixel: Float, channel: Int) =
        (pixel - preprocessing.mean[channel]) / preprocessing.std[channel]

    private companion object {
        const val RGB = 3
        const val BYTES_PER_PIXEL = 4

        // ITU-R BT.601, as in `tf.image.rgb_to_grayscale`.
        const val RED = 0.2989f
        const val GREEN = 0.587f
        const val BLUE = 0.114f
    }
}
