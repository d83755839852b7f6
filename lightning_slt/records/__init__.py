"""What every reading leaves on disk, and loading it.

One folder ``slt_records`` beside the logs holds one file ``<name>.jsonl`` per monitor: a line per reading, JSON, with
step, epoch, time, settings, and every estimate chain by chain. A number that does not exist is ``null`` in the file and
NaN in memory. Large arrays (traces) and anchors lie beside it as safetensors. A further run that logs to the same
folder gets a file of its own, ``<name>.1.jsonl``; a resumed one goes on in the file of the run.
"""

from lightning_slt.records.loading import load_anchor, load_records
from lightning_slt.records.reading import FOLDER, FORMAT, Reading
from lightning_slt.records.writing import RecordWriter

__all__ = ["FOLDER", "FORMAT", "Reading", "RecordWriter", "load_anchor", "load_records"]
