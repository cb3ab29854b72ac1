package org.dqmq.camera

import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * Reads the metadata that stand in a `.tflite` file under a name of one's own.
 *
 * The runtime does not hand such metadata out, and LiteRT's `MetadataExtractor` knows only those
 * named `TFLITE_METADATA`. The few tables on the way are read by their slots in the TFLite schema.
 */
object ModelMetadata {
    const val NAME = "dqmq_tf"

    private const val IDENTIFIER = "TFL3"
    private const val MODEL_BUFFERS_SLOT = 4
    private const val MODEL_METADATA_SLOT = 6
    private const val METADATA_NAME_SLOT = 0
    private const val METADATA_BUFFER_SLOT = 1
    private const val BUFFER_DATA_SLOT = 0

    /**
     * Returns the text under [name], or null if the file has none.
     *
     * @throws IOException if [file] holds no complete TFLite model.
     */
    fun read(file: ByteBuffer, name: String = NAME): String? {
        val bytes = file.duplicate().order(ByteOrder.LITTLE_ENDIAN)
        try {
            val identifier = text(bytes, 4, IDENTIFIER.length)
            if (identifier != IDENTIFIER) throw IOException("it is no TFLite file")
            val model = Table(bytes, bytes.getInt(0))
            val entry = model.tables(MODEL_METADATA_SLOT).find { it.text(METADATA_NAME_SLOT) == name }
                ?: return null
            val buffers = model.tables(MODEL_BUFFERS_SLOT)
            return buffers[entry.integer(METADATA_BUFFER_SLOT)].text(BUFFER_DATA_SLOT)
        } catch (error: IndexOutOfBoundsException) {
            throw IOException("it is truncated or corrupt", error)
        }
    }

    /** A flatbuffer table: a signed distance back to its vtable, which has an offset per slot. */
    private class Table(private val bytes: ByteBuffer, private val position: Int) {
        private val vtable = position - bytes.getInt(position)

        private fun field(slot: Int): Int? {
            val entry = 4 + 2 * slot
            if (entry >= unsigned(vtable)) return null
            return unsigned(vtable + entry).takeIf { it != 0 }?.let { position + it }
        }

        private fun unsigned(at: Int) = bytes.getShort(at).toInt() and 0xFFFF

        fun integer(slot: Int) = field(slot)?.let(bytes::getInt) ?: 0

        fun tables(slot: Int): List<Table> {
            val vector = vector(slot) ?: return emptyList()
            return List(count(vector)) { index ->
                val at = vector + 4 + 4 * index
                Table(bytes, at + bytes.getInt(at))
            }
        }

        /** A string, or a vector of bytes that holds UTF-8. */
        fun text(slot: Int): String? = vector(slot)?.let { text(bytes, it + 4, count(it)) }

        private fun vector(slot: Int) = field(slot)?.let { it + bytes.getInt(it) }

        private fun count(vector: Int): Int {
            val count = bytes.getInt(vector)
            if (count < 0 || count > bytes.limit()) throw IndexOutOfBoundsException("$count entries")
            return count
        }
    }

    private fun text(bytes: ByteBuffer, position: Int, length: Int): String {
        if (position < 0 || position > bytes.limit() - length) {
            throw IndexOutOfBoundsException("text at $position")
        }
        val content = ByteArray(length)
        val view = bytes.duplicate()
        view.position(position)
        view.get(content)
        return String(content, Charsets.UTF_8)
    }
}
