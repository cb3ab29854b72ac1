package org.dqmq.camera

import java.io.Closeable
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import org.json.JSONException
import org.json.JSONObject
import org.tensorflow.lite.DataType
import org.tensorflow.lite.Interpreter

/**
 * Runs a file that `dqmq_tf.convert` wrote: one precision profile, or several and their router.
 *
 * An adaptive file has a signature per profile and one for the router, which says from the image
 * how many bits it needs. All take the same float image. A file that routes in its graph has one
 * signature, and may tell the profile as a second output. Not safe for threads: make it, use it and
 * close it on one.
 *
 * @param file the whole file, in a direct buffer of native byte order.
 * @throws IOException if the file is none that this app can run.
 */
class Classifier(file: ByteBuffer, threads: Int = 1) : Closeable {
    /**
     * What one image gave.
     *
     * @property profile the precision profile that ran.
     * @property latencyMillis time in the profile's network.
     * @property routerMillis time in the router; 0 without one.
     */
    data class Result(
        val label: Int,
        val score: Float,
        val profile: Int,
        val latencyMillis: Double,
        val routerMillis: Double,
    )

    private val interpreter: Interpreter
    private val profiles: List<String>
    private val routesInGraph: Boolean
    private val fixedProfile: Int

    /** What the file says of itself, one line. */
    val description: String

    /** Height and width of the images that it takes. */
    val inputHeight: Int
    val inputWidth: Int

    /** Whether a router chooses the profile. */
    val adaptive: Boolean

    /** How many precision profiles it holds. */
    val profileCount get() = profiles.size

    /** How a picture becomes an image that it takes. */
    val preprocessing: Preprocessing

    /** The names of the classes; empty if the file has none. */
    val labels: List<String>

    /** Where the image goes: `height x width x channels` floats. */
    val input: FloatBuffer

    private val inputBytes: ByteBuffer
    private val scores: ByteBuffer
    private val chosen = direct(1)

    init {
        val facts = facts(file)
        interpreter = try {
            Interpreter(file, Interpreter.Options().setNumThreads(threads))
        } catch (error: IllegalArgumentException) {
            throw IOException("the runtime does not take it (${error.message})", error)
        }
        try {
            val signatures = interpreter.signatureKeys.toSet()
            adaptive = ROUTER_SIGNATURE in signatures
            profiles = if (adaptive) {
                generateSequence(0) { it + 1 }.map { "$PROFILE_SIGNATURE_PREFIX$it" }
                    .takeWhile { it in signatures }.toList()
            } else {
                listOf(SINGLE_SIGNATURE).filter { it in signatures }
            }
            if (profiles.isEmpty()) throw IOException("its signatures are unknown: $signatures")
            routesInGraph = interpreter.getSignatureOutputs(profiles.first())
                .let { it.size == 2 && ROUTER_OUTPUT in it }
            fixedProfile = facts.optInt(PROFILE_KEY, 0)
            preprocessing = Preprocessing.of(facts, inputName(profiles.first()))
            labels = labels(facts)
            val shape = imageShape(profiles.first())
            inputHeight = shape[1]
            inputWidth = shape[2]
            inputBytes = direct(shape.fold(1, Int::times))
            input = inputBytes.asFloatBuffer()
            scores = direct(scoresTensor(profiles.first()).numElements())
            description = describe(facts)
        } catch (error: Throwable) {
            interpreter.close()
            throw error
        }
    }

    /** Classifies what stands in [input]. */
    fun classify(): Result {
        var routerMillis = 0.0
        var profile = fixedProfile
        var signature = profiles.first()
        if (adaptive) {
            run(ROUTER_SIGNATURE, mapOf(ROUTER_OUTPUT to chosen))
            routerMillis = lastMillis()
            profile = chosen.getInt(0)
            signature = profiles.getOrNull(profile)
                ?: throw IllegalStateException("the router chose profile $profile of ${profiles.size}")
        }
        val outputs = mapOf(scoresName(signature) to scores)
        run(signature, if (routesInGraph) outputs + (ROUTER_OUTPUT to chosen) else outputs)
        if (routesInGraph) profile = chosen.getInt(0)
        val values = scores.asFloatBuffer()
        val label = (0 until values.capacity()).maxBy(values::get)
        return Result(label, values[label], profile, lastMillis(), routerMillis)
    }

    override fun close() = interpreter.close()

    private fun run(signature: String, outputs: Map<String, ByteBuffer>) {
        inputBytes.rewind()
        outputs.values.forEach { it.rewind() }
        interpreter.runSignature(mapOf<String, Any>(inputName(signature) to inputBytes), outputs, signature)
        outputs.values.forEach { it.rewind() }
    }

    private fun lastMillis() = (interpreter.lastNativeInferenceDurationNanoseconds ?: 0L) / 1e6

    private fun inputName(signature: String) = interpreter.getSignatureInputs(signature).single()

    private fun scoresName(signature: String): String {
        val names = interpreter.getSignatureOutputs(signature)
        return names.singleOrNull() ?: names.single { it != ROUTER_OUTPUT }
    }

    private fun scoresTensor(signature: String) =
        interpreter.getOutputTensorFromSignature(scoresName(signature), signature)

    private fun imageShape(signature: String): IntArray {
        val names = interpreter.getSignatureInputs(signature)
        val exits = interpreter.getSignatureOutputs(signature)
        if (names.size != 1 || exits.size != 1 + (if (routesInGraph) 1 else 0)) {
            throw IOException("it has ${names.size} inputs and ${exits.size} outputs, not one each")
        }
        val entry = interpreter.getInputTensorFromSignature(names.single(), signature)
        val types = setOf(entry.dataType(), scoresTensor(signature).dataType())
        if (types != setOf(DataType.FLOAT32)) {
            throw IOException("its ends are $types: convert the model with io_dtype=\"float32\"")
        }
        val shape = entry.shape()
        val channels = preprocessing.color.channels
        if (shape.size != 4 || shape[0] != 1 || shape[3] != channels) {
            throw IOException("it takes ${shape.contentToString()}, not one image of $channels channels")
        }
        return shape
    }

    private fun labels(facts: JSONObject): List<String> {
        val names = facts.optJSONArray(LABELS_KEY) ?: return emptyList()
        return List(names.length()) { names.getString(it) }
    }

    private fun describe(facts: JSONObject): String {
        val kind = when {
            adaptive -> "$profileCount profiles and a router"
            routesInGraph -> "routes in its graph"
            else -> "profile $fixedProfile"
        }
        return "dqmq_tf ${facts.optString(VERSION_KEY)}, ${facts.optString(TARGET_KEY)}: $kind"
    }

    private companion object {
        const val SINGLE_SIGNATURE = "serving_default"
        const val PROFILE_SIGNATURE_PREFIX = "profile_"
        const val ROUTER_SIGNATURE = "router"
        const val ROUTER_OUTPUT = "profile"
        const val VERSION_KEY = "version"
        const val TARGET_KEY = "target"
        const val PROFILE_KEY = "profile"
        const val LABELS_KEY = "labels"
        const val BYTES_PER_VALUE = 4

        fun facts(file: ByteBuffer): JSONObject {
            val text = ModelMetadata.read(file) ?: throw IOException("dqmq_tf did not write it")
            return try {
                JSONObject(text)
            } catch (error: JSONException) {
                throw IOException("its metadata are corrupt", error)
            }
        }

        fun direct(values: Int): ByteBuffer =
            ByteBuffer.allocateDirect(values * BYTES_PER_VALUE).order(ByteOrder.nativeOrder())
    }
}
