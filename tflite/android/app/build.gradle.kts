plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "org.dqmq.camera"
    compileSdk = 35

    defaultConfig {
        applicationId = "org.dqmq.camera"
        minSdk = 24
        targetSdk = 35
        versionCode = 1
        versionName = "0.1.0"
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
    testImplementation("org.json:json:20240303") // On a phone it is part of Android.
}
