"""Data files -> rows -> encoded examples -> batches; every row and token accounted for in the data report."""

from swift.data.collate import PadCollator
from swift.data.encode import encode_rows
from swift.data.encoded import EncodedDataset
from swift.data.load import Loaded, load_rows
from swift.data.prepare import Prepared, make_encoder, prepare
from swift.data.report import DataReport
from swift.data.rows import Row, Rows, Source, write_rows

__all__ = [
    "DataReport",
    "EncodedDataset",
    "Loaded",
    "PadCollator",
    "Prepared",
    "Row",
    "Rows",
    "Source",
    "encode_rows",
    "load_rows",
    "make_encoder",
    "prepare",
    "write_rows",
]
