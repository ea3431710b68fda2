"""ONNX, in float32 and in int8."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble_kd.errors import ExportError
from ensemble_kd.export.graph import Graph, exported, first_words, quiet
from ensemble_kd.inference.feed import by_length, feed, input_names


def write_onnx(graph: Graph, info: dict[str, Any], path: Path) -> None:
    """The graph in one file; the number of rows and of tokens may vary.

    Raises ExportError with the operator that ONNX does not have.
    """
    program = exported(graph, info)
    try:
        with quiet():
            found = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(input_names(info)),
                output_names=["logits"],
                verbose=False,
            )
            assert found is not None
            found.save(str(path), external_data=False)
    except Exception as error:  # the exporter's errors have many bases
        raise ExportError(f"onnx: {_operator(error)}") from error


def _operator(error: Exception) -> str:
    """The operators in the way, which the exporter names in the causes of its error; else its words."""
    cause: BaseException | None = error
    names: set[str] = set()
    while cause is not None:
        names |= set(re.findall(r"(?:aten|torch\.ops\.\w+)(?:\.|::)(\w+)", str(cause)))
        cause = cause.__cause__ or cause.__context__
    if not names:
        return first_words(error)
    return (
        f"ONNX has no operator for {', '.join(sorted(names))} in this model; write it in other "
        "operations, or use the form program"
    )


INT8_METHODS = ("dynamic", "static")
"""dynamic: ranges of activations are taken from each batch as it passes; static: from calibration rows."""


def write_int8(
    source: Path, info: dict[str, Any], inputs: np.ndarray, method: str, path: Path, trained: bool = False
) -> None:
    """The float32 graph in `source` with int8 weights, by onnxruntime's quantiser.

    `inputs` (N, ...) are the calibration rows of `static`. Weights take 7 of the 8 bits: processors without
    VNNI add products in pairs that saturate at 16 bits, and with 7 bits they never do, so that the form gives
    the same answers everywhere. Weights that were `trained` as integers keep these, one step per tensor.
    Raises ExportError.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser writes to the root logger
    try:
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # ranges of what is masked with -inf
            prepared = Path(scratch) / "prepared.onnx"
            # The exporter notes shapes of values that the quantiser transposes; it finds them anew.
            model = onnx.load(source)
            del model.graph.value_info[:]
            onnx.save(model, prepared)
            quant_pre_process(str(prepared), str(prepared), skip_symbolic_shape=True)
            if method == "dynamic":
                quantize_dynamic(
                    str(prepared),
                    str(path),
                    per_channel=not trained,
                    reduce_range=not trained,
                    weight_type=QuantType.QInt8,
                )
            else:
                quantize_static(
                    str(prepared),
                    str(path),
                    _Rows(info, inputs),
                    quant_format=QuantFormat.QDQ,
                    per_channel=not trained,
                    reduce_range=not trained,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                )
    except Exception as error:  # as above
        raise ExportError(f"int8 ({method}): {first_words(error)}") from error
    finally:
        logging.getLogger().setLevel(level)


class _Rows:
    """Calibration rows as onnxruntime reads them: one feed after another."""

    def __init__(self, info: dict[str, Any], inputs: np.ndarray, batch: int = 32) -> None:
        self.feeds: Iterator[dict[str, np.ndarray]] = iter(self._feeds(info, inputs, batch))

    @staticmethod
    def _feeds(info: dict[str, Any], inputs: np.ndarray, batch: int) -> Iterator[dict[str, np.ndarray]]:
        if info["kind"] != "text":
            for begin in range(0, len(inputs), batch):
                yield feed(info, inputs[begin : begin + batch])
            return
        for rows in by_length(inputs, batch, 1 << 30):
            part = inputs[rows]
            yield feed(info, part[:, : int(np.flatnonzero((part != 0).any(0)).max(initial=0)) + 1])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self.feeds
