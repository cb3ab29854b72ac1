"""A graph and its precision become the bytes of a `.tflite` file."""
