"""Trajectories of samples beside them, as Parquet: a line for each step that changed something."""

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from discdiff.samplers.trace import Trace
from pipelines.place import Place

SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "time": pa.float64(),
        "positions": pa.list_(pa.int32()),
        "tokens": pa.list_(pa.int32()),
    }
)
"""On the way to `time` the tokens at `positions` became `tokens`; the first line of a row tells them all, and
a mask is the token V.
"""


def table(traces: Sequence[Trace], first_row: int) -> pa.Table:
    """The traces of consecutive rows."""
    lines = [
        {
            "row": first_row + index,
            "time": time,
            "positions": [position for position, _ in step],
            "tokens": [token for _, token in step],
        }
        for index, trace in enumerate(traces)
        for time, step in zip(trace.times, trace.steps, strict=True)
    ]
    return pa.Table.from_pylist(lines, SCHEMA)


def read(place: Place, row: int) -> Trace | None:
    """The trace of a sample, None where none was kept."""
    for name in place.names():
        if name.startswith("traces-"):
            found = _of(pq.read_table(io.BytesIO(place.read(name) or b"")), row)
            if found.num_rows:
                return _trace(found)
    return None


def _of(lines: pa.Table, row: int) -> pa.Table:
    return lines.filter(pa.array(np.asarray(lines["row"]) == row))


def _trace(lines: pa.Table) -> Trace:
    pairs = zip(lines["positions"].to_pylist(), lines["tokens"].to_pylist(), strict=True)
    steps = [list(zip(positions, tokens, strict=True)) for positions, tokens in pairs]
    return Trace(list(np.asarray(lines["time"]).tolist()), steps)
