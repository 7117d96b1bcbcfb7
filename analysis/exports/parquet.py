"""`results.parquet`: the table of `results.csv` with types, and with each column's unit and meaning beside it."""

from __future__ import annotations

from analysis.exports.results import columns
from analysis.schema import SCHEMA_VERSION, Report
from benchmarks.core.errors import UserError


def results_parquet(report: Report) -> bytes:
    """One row for each cell. Texts stand as they are: no program takes those of a Parquet file for formulas.

    The metadata of a field have its `unit` and `meaning`, those of the file `schema_version`, `sweep` and `cluster`.

    Raises:
        UserError: pyarrow cannot be imported here.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"results.parquet needs pyarrow, which is not to be had here ({error})") from error
    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    fields, arrays = [], []
    for one in columns(report):
        fields.append(pyarrow.field(one.name, types[one.type], metadata={"unit": one.unit, "meaning": one.meaning}))
        values = [one.of(point) for point in report.cells]
        arrays.append(pyarrow.array([None if value is None else one.type(value) for value in values], types[one.type]))
    facts = {"schema_version": str(SCHEMA_VERSION), "sweep": report.sweep, "cluster": report.cluster}
    schema = pyarrow.schema(fields, metadata={name: text.encode(errors="replace") for name, text in facts.items()})
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=schema), sink)
    return bytes(sink.getvalue().to_pybytes())
