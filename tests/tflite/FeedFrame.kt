// Feeds a frame as the Android app does, and prints what the network would get and the labels.
//
// Arguments: the .tflite file, the frame in RGBA, its width and height, the name of the input, and the
// width and height of the input.

import java.io.File
import java.nio.ByteBuffer
import java.nio.FloatBuffer
import org.dqmq.camera.FrameScaler
import org.dqmq.camera.ModelMetadata
import org.dqmq.camera.Preprocessing
import org.json.JSONObject

fun main(arguments: Array<String>) {
    val (file, frame, frameWidth, frameHeight, input) = arguments
    val (width, height) = arguments.drop(5).map(String::toInt)
    val facts = JSONObject(ModelMetadata.read(ByteBuffer.wrap(File(file).readBytes()))!!)
    val preprocessing = Preprocessing.of(facts, input)
    val target = FloatBuffer.allocate(width * height * preprocessing.color.channels)
    FrameScaler(width, height, preprocessing).fill(
        ByteBuffer.wrap(File(frame).readBytes()),
        frameWidth.toInt(),
        frameHeight.toInt(),
        4 * frameWidth.toInt(),
        target,
    )
    println(target.array().joinToString(" "))
    println(facts.getJSONArray("labels").toString())
}
