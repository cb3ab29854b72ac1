package org.dqmq.camera

import android.Manifest
import android.content.pm.PackageManager
import android.graphics.Color
import android.os.Bundle
import android.view.Gravity
import android.widget.FrameLayout
import android.widget.TextView
import androidx.activity.ComponentActivity
import androidx.activity.result.contract.ActivityResultContracts
import androidx.camera.core.CameraInfoUnavailableException
import androidx.camera.core.CameraSelector
import androidx.camera.core.ImageAnalysis
import androidx.camera.core.ImageProxy
import androidx.camera.core.Preview
import androidx.camera.lifecycle.ProcessCameraProvider
import androidx.camera.view.PreviewView
import androidx.core.content.ContextCompat
import java.io.FileNotFoundException
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Locale
import java.util.concurrent.ExecutionException
import java.util.concurrent.ExecutorService
import java.util.concurrent.Executors

/** Shows the camera, and over it the class of what it sees, the profile that ran and its latency. */
class MainActivity : ComponentActivity() {
    // The classifier lives on this thread alone: it is made, used and closed there.
    private val worker: ExecutorService = Executors.newSingleThreadExecutor()
    private var classifier: Classifier? = null
    private var scaler: FrameScaler? = null
    private val latencies = ArrayDeque<Double>()

    private lateinit var preview: PreviewView
    private lateinit var text: TextView

    private val permission =
        registerForActivityResult(ActivityResultContracts.RequestPermission()) { granted ->
            if (granted) startCamera() else show(getString(R.string.needs_camera))
        }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        preview = PreviewView(this)
        text = TextView(this).apply {
            setTextColor(Color.WHITE)
            setBackgroundColor(Color.argb(160, 0, 0, 0))
            setPadding(32, 32, 32, 32)
            textSize = 18f
        }
        val wide = FrameLayout.LayoutParams.MATCH_PARENT
        val tall = FrameLayout.LayoutParams.WRAP_CONTENT
        setContentView(
            FrameLayout(this).apply {
                fitsSystemWindows = true
                addView(preview, FrameLayout.LayoutParams(wide, wide))
                addView(text, FrameLayout.LayoutParams(wide, tall, Gravity.BOTTOM))
            },
        )
        worker.execute(::loadModel)
    }

    override fun onDestroy() {
        worker.execute {
            classifier?.close()
            classifier = null
        }
        worker.shutdown() // What was handed in before still runs.
        super.onDestroy()
    }

    private fun loadModel() {
        try {
            val loaded = Classifier(asset(MODEL))
            classifier = loaded
            scaler = FrameScaler(loaded.inputWidth, loaded.inputHeight, loaded.preprocessing)
        } catch (error: FileNotFoundException) {
            return show(getString(R.string.missing_model, MODEL))
        } catch (error: IOException) {
            return show(getString(R.string.broken_model, MODEL, error.message))
        }
        runOnUiThread(::askForCamera)
    }

    private fun askForCamera() {
        if (isDestroyed) return
        val state = ContextCompat.checkSelfPermission(this, Manifest.permission.CAMERA)
        if (state == PackageManager.PERMISSION_GRANTED) {
            startCamera()
        } else {
            permission.launch(Manifest.permission.CAMERA)
        }
    }

    private fun startCamera() {
        val future = ProcessCameraProvider.getInstance(this)
        future.addListener(
            {
                try {
                    bind(future.get())
                } catch (error: ExecutionException) {
                    show(getString(R.string.no_camera, error.cause?.message))
                } catch (error: CameraInfoUnavailableException) {
                    show(getString(R.string.no_camera, error.message))
                } catch (error: IllegalArgumentException) { // There is none.
                    show(getString(R.string.no_camera, error.message))
                }
            },
            ContextCompat.getMainExecutor(this),
        )
    }

    private fun bind(provider: ProcessCameraProvider) {
        if (isDestroyed) return
        val shown = Preview.Builder().build().apply { setSurfaceProvider(preview.surfaceProvider) }
        val analysis = ImageAnalysis.Builder()
            .setOutputImageFormat(ImageAnalysis.OUTPUT_IMAGE_FORMAT_RGBA_8888)
            .setOutputImageRotationEnabled(true) // Frames come upright.
            .setBackpressureStrategy(ImageAnalysis.STRATEGY_KEEP_ONLY_LATEST)
            .build()
        analysis.setAnalyzer(worker, ::analyze)
        provider.unbindAll()
        val camera = if (provider.hasCamera(CameraSelector.DEFAULT_BACK_CAMERA)) {
            CameraSelector.DEFAULT_BACK_CAMERA
        } else {
            CameraSelector.DEFAULT_FRONT_CAMERA
        }
        provider.bindToLifecycle(this, camera, shown, analysis)
    }

    private fun analyze(frame: ImageProxy) {
        val running = classifier ?: return frame.close()
        frame.use {
            val plane = it.planes[0]
            scaler?.fill(plane.buffer, it.width, it.height, plane.rowStride, running.input)
        }
        val result = running.classify()
        latencies.addLast(result.latencyMillis)
        if (latencies.size > LATENCY_WINDOW) latencies.removeFirst()
        show(describe(running, result))
    }

    private fun describe(running: Classifier, result: Classifier.Result): String {
        val name = running.labels.getOrElse(result.label) { "class ${result.label}" }
        val median = latencies.sorted()[latencies.size / 2]
        return listOf(
            "$name  ${twoDigits(result.score.toDouble())}",
            "profile ${result.profile}: ${twoDigits(result.latencyMillis)} ms, " +
                "median of ${latencies.size} ${twoDigits(median)} ms",
            "router: ${twoDigits(result.routerMillis)} ms".takeIf { running.adaptive },
            running.description,
        ).filterNotNull().joinToString("\n")
    }

    private fun twoDigits(value: Double) = String.format(Locale.ROOT, "%.2f", value)

    private fun show(message: String) {
        runOnUiThread { text.text = message }
    }

    /** An asset as the runtime wants it: direct, of native byte order. */
    private fun asset(name: String): ByteBuffer {
        val bytes = assets.open(name).use { it.readBytes() }
        return ByteBuffer.allocateDirect(bytes.size).order(ByteOrder.nativeOrder()).apply {
            put(bytes)
            rewind()
        }
    }

    private companion object {
        const val MODEL = "model.tflite"
        const val LATENCY_WINDOW = 31
    }
}
