"""Who does the work of a run: this process (serial), processes on this machine (local), or actors of Ray (ray).

The process that holds the folder's lock makes the units and writes every result; a worker holds one replica of the model and
returns arrays. What a unit holds is fixed by the run, not by who does it or when, so that the same threads and memory give
the same bits whatever the engine.

Tests: `tests/runs/workers/test_local.py` for `process`, `replica`, `serial`, `sharing`, `units`, `engine` and `choose`;
`test_scheduler.py` for `queue` and `pool`.
"""

from pycotmech.runs.workers.choose import open_engine, threads_of
from pycotmech.runs.workers.engine import Engine, EngineChoice
from pycotmech.runs.workers.queue import UnitQueue
from pycotmech.runs.workers.units import Answer, GradeUnit, PatchUnit, ReplicaSpec, Unit

__all__ = [
    "Answer",
    "Engine",
    "EngineChoice",
    "GradeUnit",
    "PatchUnit",
    "ReplicaSpec",
    "Unit",
    "UnitQueue",
    "open_engine",
    "threads_of",
]
