plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

// What a pixel of 0 to 255 is multiplied by before the network sees it.
val inputScale = providers.gradleProperty("inputScale").getOrElse("1f / 255f")

android {
    namespace = "org.dqmq.camera"
    compileSdk = 35

    defaultConfig {
        applicationId = "org.dqmq.camera"
        minSdk = 24
        targetSdk = 35
        versionCode = 1
        versionName = "0.1.0"
        buildConfigField("float", "INPUT_SCALE", inputScale)
    }

    buildFeatures {
        buildConfig = true
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin {
    jvmToolchain(17)
}

dependencies {
    implementation("androidx.activity:activity-ktx:1.10.1")
    implementation("androidx.camera:camera-camera2:1.4.2")
    implementation("androidx.camera:camera-lifecycle:1.4.2")
    implementation("androidx.camera:camera-view:1.4.2")
    // 2.x, as INT2 containers need it; its Interpreter runs on the CPU with XNNPACK.
    implementation("com.google.ai.edge.litert:litert:2.1.6")

    testImplementation("junit:junit:4.13.2")
}
