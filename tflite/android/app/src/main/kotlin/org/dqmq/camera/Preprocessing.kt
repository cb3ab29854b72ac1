package org.dqmq.camera

import java.io.IOException
import org.json.JSONException
import org.json.JSONObject

/**
 * How a picture becomes an input, as the file says: `(pixel - mean) / std` of pixels from 0 to 255.
 *
 * @property mean one number per channel, in the order of [color].
 * @property std likewise.
 */
class Preprocessing(val mean: FloatArray, val std: FloatArray, val color: Color, val resize: Resize) {
    /** The order of the channels. */
    enum class Color(val channels: Int) { RGB(3), BGR(3), GRAY(1) }

    /** The rules of `tf.image.resize`. */
    enum class Resize { NEAREST, BILINEAR, AREA }

    init {
        require(mean.size == color.channels && std.size == color.channels) {
            "$color has ${color.channels} channels, but there are ${mean.size} means and ${std.size} deviations"
        }
    }

    companion object {
        private const val INPUTS_KEY = "inputs"
        private const val MEAN_KEY = "mean"
        private const val STD_KEY = "std"
        private const val COLOR_KEY = "color"
        private const val RESIZE_KEY = "resize"

        /**
         * Reads the preprocessing of an input. Where the file does not name a resize rule, frames are
         * resized by area: they are far larger than inputs, and single samples would alias.
         *
         * @param facts the JSON that the file has under the name `dqmq_tf`.
         * @param input name of the input in the signature.
         * @throws IOException if the file does not say it, or says what this app does not know.
         */
        fun of(facts: JSONObject, input: String): Preprocessing {
            val entry = facts.optJSONObject(INPUTS_KEY)?.optJSONObject(input)
                ?: throw IOException(
                    "it does not say how its input \"$input\" is fed: convert the model with preprocessing=...",
                )
            return try {
                Preprocessing(
                    numbers(entry, MEAN_KEY),
                    numbers(entry, STD_KEY),
                    Color.valueOf(entry.getString(COLOR_KEY)),
                    Resize.valueOf(entry.optString(RESIZE_KEY, "area").uppercase()),
                )
            } catch (error: JSONException) {
                throw IOException("the preprocessing of its input \"$input\" is incomplete", error)
            } catch (error: IllegalArgumentException) { // An unknown color or rule, or wrong channels.
                throw IOException("this app cannot feed its input \"$input\": $entry", error)
            }
        }

        private fun numbers(entry: JSONObject, key: String): FloatArray {
            val array = entry.getJSONArray(key)
            return FloatArray(array.length()) { array.getDouble(it).toFloat() }
        }
    }
}
