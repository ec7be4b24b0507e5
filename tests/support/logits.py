"""How far logits are from golden ones, by a measure that suits the model's type."""
import numpy as np

# What a right model stays within. f32: |logit - golden|. f16: of a row (the logits of one token) the length of the
# difference over the length of the golden row; the exported cases are off by 0.0141 at most, a wrong mask by 0.38 or more.
TOLERANCE = {"float32": 1e-4, "float16": 0.02}


def error(got, want, element):
    """The largest error of any row of `got`, to be compared with TOLERANCE[element]; NaN where there is one."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if element == "float32":
        return float(np.abs(got - want).max())
    return float((np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)).max())
