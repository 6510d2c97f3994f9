"""The training rows, behind the few reductions the mathematics asks of them.

Nothing above this package sees how rows are kept: in this process (`memory`), on disk (`spill`), on the workers of a
Dask cluster (`cluster`) or nowhere for long (`passing`). `Rows` runs a step on every block of rows and joins what
comes back, always over the same blocks and in the same order, so that the answer does not depend on where the rows are.
"""

from mlflow_relabel_audit.rows.block import RowBlock
from mlflow_relabel_audit.rows.cluster import ClusterStore
from mlflow_relabel_audit.rows.joined import JoinedStore, joined
from mlflow_relabel_audit.rows.memory import MemoryStore
from mlflow_relabel_audit.rows.parquet import ParquetSource
from mlflow_relabel_audit.rows.passing import PassingStore
from mlflow_relabel_audit.rows.progress import READING, Progress, Telling
from mlflow_relabel_audit.rows.rows import Rows
from mlflow_relabel_audit.rows.spill import Spool
from mlflow_relabel_audit.rows.store import Join, Kept, Step

__all__ = [
    "READING",
    "ClusterStore",
    "Join",
    "JoinedStore",
    "Kept",
    "MemoryStore",
    "ParquetSource",
    "PassingStore",
    "Progress",
    "RowBlock",
    "Rows",
    "Spool",
    "Step",
    "Telling",
    "joined",
]
