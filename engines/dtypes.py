"""NumPy's types of the manifest's names of types."""

import numpy as np


def numpy_dtype(name: str) -> np.dtype:
    """The dtype of a name such as "float32"; "bfloat16" is that of ml_dtypes, which is imported only for it."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
