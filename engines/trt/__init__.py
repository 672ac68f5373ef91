"""TensorRT and TensorRT-RTX: engines built once per GPU, kept in the bundle, decided upon before they are loaded.

Both packages have nearly the same API; everything here takes the module as a parameter.
"""
