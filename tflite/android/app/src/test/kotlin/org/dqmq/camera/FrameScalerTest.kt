package org.dqmq.camera

import java.nio.ByteBuffer
import java.nio.FloatBuffer
import org.dqmq.camera.Preprocessing.Color
import org.dqmq.camera.Preprocessing.Resize
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

    private val plain = Preprocessing(FloatArray(3), floatArrayOf(1f, 1f, 1f), Color.RGB, Resize.AREA)

    private fun scaled(
        width: Int,
        height: Int,
        frameWidth: Int,
        frameHeight: Int,
        preprocessing: Preprocessing = plain,
    ): FloatArray {
        val target = FloatBuffer.allocate(width * height * preprocessing.color.channels)
        val rowStride = 4 * frameWidth + 12
        FrameScaler(width, height, preprocessing)
            .fill(frame(frameWidth, frameHeight, rowStride), frameWidth, frameHeight, rowStride, target)
        return target.array()
    }

    @Test
    fun pixelsAreMeansOfTheCenteredSquare() {
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
        // Columns 0, 1 and half of 2; the other half of 2, 3 and 4.
        val expected = floatArrayOf(
            8f, 8f, 255f, 32f, 8f, 255f,
            8f, 32f, 255f, 32f, 32f, 255f,
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
    fun valuesAreNormalizedByChannel() {
        val given = Preprocessing(floatArrayOf(1f, 2f, 55f), floatArrayOf(2f, 4f, 100f), Color.RGB, Resize.AREA)
        assertArrayEquals(floatArrayOf(-0.5f, -0.5f, 2f), scaled(1, 1, 1, 1, given), 1e-6f)
    }

    @Test
    fun channelsHaveTheOrderOfTheFile() {
        val given = Preprocessing(floatArrayOf(1f, 2f, 5f), floatArrayOf(1f, 1f, 10f), Color.BGR, Resize.AREA)
        assertArrayEquals(floatArrayOf(254f, 3f, 0f), scaled(1, 1, 2, 2, given), 1e-6f)
    }

    @Test
    fun grayIsTheLuma() {
        val given = Preprocessing(floatArrayOf(0f), floatArrayOf(1f), Color.GRAY, Resize.AREA)
        val expected = 5f * 0.2989f + 5f * 0.587f + 255f * 0.114f
        assertArrayEquals(floatArrayOf(expected), scaled(1, 1, 2, 2, given), 1e-4f)
    }

    @Test
    fun nearestTakesThePixelAtTheCenter() {
        val given = Preprocessing(plain.mean, plain.std, Color.RGB, Resize.NEAREST)
        val expected = floatArrayOf(
            10f, 10f, 255f, 30f, 10f, 255f,
            10f, 30f, 255f, 30f, 30f, 255f,
        )
        assertArrayEquals(expected, scaled(2, 2, 5, 5, given), 0f)
    }

    @Test
    fun bilinearMixesTheTwoPixelsAroundTheCenter() {
        val given = Preprocessing(plain.mean, plain.std, Color.RGB, Resize.BILINEAR)
        // Centers at 0.75 and 3.25 of 5; at -0.25, 0.25, 0.75 and 1.25 of 2.
        val expected = floatArrayOf(
            7.5f, 7.5f, 255f, 32.5f, 7.5f, 255f,
            7.5f, 32.5f, 255f, 32.5f, 32.5f, 255f,
        )
        assertArrayEquals(expected, scaled(2, 2, 5, 5, given), 1e-4f)
        val first = floatArrayOf(0f, 0f, 255f, 2.5f, 0f, 255f, 7.5f, 0f, 255f, 10f, 0f, 255f)
        assertArrayEquals(first, scaled(4, 4, 2, 2, given).copyOf(12), 1e-4f)
    }
}
