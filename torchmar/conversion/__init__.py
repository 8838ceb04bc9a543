"""Models of Keras and TensorFlow, converted when an archive is built.

::

    model.keras, model.h5            --a process with Keras on torch-> model.pt2
    SavedModel folder, model.tflite  --a process with OpenVINO-------> model.xml and model.bin

The answers of both are compared. The server and its workers need neither Keras nor TensorFlow, and the process of the
build imports none of them, nor torch. An unchanged source is not converted again: results are cached in
``$XDG_CACHE_HOME/torchmar/converted`` by the digest of all inputs of the conversion.
"""
