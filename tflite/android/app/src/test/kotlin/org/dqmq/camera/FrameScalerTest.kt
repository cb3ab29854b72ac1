package org.dqmq.camera

import java.nio.ByteBuffer
import java.nio.FloatBuffer
import org.junit.Assert.assertArrayEquals
import org.junit.Test

class FrameScalerTest {
    /** A frame whose red is 10 times the column, green 10 times the row, blue 255. */
    private fun frame(width: Int, height: Int, rowStride: Int): ByteBuffer {
        // The last row of a camera's plane has no padding.
        val bytes = ByteArray((height - 1) * rowStride + 4 * width) { 7 }
        for (y in 0 until height) {
            for (x in 0 until width) {
                val at = y * rowStride + 4 * x
                bytes[at] = (10 * x).toByte()
                bytes[at + 1] = (10 * y).toByte()
                bytes[at + 2] = 255.toByte()
            }
        }
        return ByteBuffer.wrap(bytes)
    }

    private fun scaled(width: Int, height: Int, frameWidth: Int, frameHeight: Int, scale: Float = 1f): FloatArray {
        val target = FloatBuffer.allocate(width * height * FrameScaler.CHANNELS)
        val rowStride = 4 * frameWidth + 12
        FrameScaler(width, height, scale)
            .fill(frame(frameWidth, frameHeight, rowStride), frameWidth, frameHeight, rowStride, target)
        return target.array()
    }

    @Test
    fun pixelsAreMeansOfTheCentredSquare() {
        // Columns 2 to 5 of 8 are left: 2, 3 and 4, 5 in pairs.
        val expected = floatArrayOf(
            25f, 5f, 255f, 45f, 5f, 255f,
            25f, 25f, 255f, 45f, 25f, 255f,
        )
        assertArrayEquals(expected, scaled(2, 2, 8, 4), 1e-4f)
    }

    @Test
    fun tallFramesAreCutAboveAndBelow() {
        assertArrayEquals(floatArrayOf(5f, 25f, 255f), scaled(1, 1, 2, 6), 1e-4f)
    }

    @Test
    fun everySourcePixelCountsOnceWhereSizesDoNotDivide() {
        // Columns 0..1 and 2..4 of 5.
        val expected = floatArrayOf(
            5f, 5f, 255f, 30f, 5f, 255f,
            5f, 30f, 255f, 30f, 30f, 255f,
        )
        assertArrayEquals(expected, scaled(2, 2, 5, 5), 1e-4f)
    }

    @Test
    fun smallFramesAreRepeated() {
        val expected = floatArrayOf(
            0f, 0f, 255f, 0f, 0f, 255f, 10f, 0f, 255f, 10f, 0f, 255f,
        )
        assertArrayEquals(expected, scaled(4, 4, 2, 2).copyOf(12), 1e-4f)
    }

    @Test
    fun valuesAreScaled() {
        assertArrayEquals(floatArrayOf(0f, 0f, 1f), scaled(1, 1, 1, 1, 1f / 255f), 1e-6f)
    }
}
