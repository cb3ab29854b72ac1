package org.dqmq.camera

import java.io.IOException
import org.dqmq.camera.Preprocessing.Color
import org.dqmq.camera.Preprocessing.Resize
import org.json.JSONObject
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class PreprocessingTest {
    private fun read(entry: String) = Preprocessing.of(JSONObject("""{"inputs": {"image": $entry}}"""), "image")

    private fun refused(facts: String): String {
        val error = assertThrows(IOException::class.java) { Preprocessing.of(JSONObject(facts), "image") }
        return error.message!!
    }

    @Test
    fun everythingIsRead() {
        val found = read("""{"mean": [1, 2.5, 3], "std": [58.4, 1, 2], "color": "BGR", "resize": "bilinear"}""")
        assertArrayEquals(floatArrayOf(1f, 2.5f, 3f), found.mean, 0f)
        assertArrayEquals(floatArrayOf(58.4f, 1f, 2f), found.std, 0f)
        assertEquals(Color.BGR to Resize.BILINEAR, found.color to found.resize)
    }

    @Test
    fun withoutARuleFramesAreResizedByArea() {
        assertEquals(Resize.AREA, read("""{"mean": [0], "std": [1], "color": "GRAY"}""").resize)
    }

    @Test
    fun whatIsMissingOrUnknownIsRefused() {
        assertTrue("convert the model with preprocessing" in refused("{}"))
        assertTrue("convert the model with preprocessing" in refused("""{"inputs": {"other": {}}}"""))
        assertTrue("is incomplete" in refused("""{"inputs": {"image": {"mean": [0], "std": [1]}}}"""))
        for (entry in listOf(
            """{"mean": [0], "std": [1], "color": "RGB"}""",
            """{"mean": [0], "std": [1], "color": "LAB"}""",
            """{"mean": [0], "std": [1], "color": "GRAY", "resize": "bicubic"}""",
        )) assertTrue("cannot feed" in refused("""{"inputs": {"image": $entry}}"""))
    }
}
