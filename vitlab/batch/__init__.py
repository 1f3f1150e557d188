"""A grid of parameters over a chain of notebooks: planned, executed, and continued after an
interruption.
"""

from vitlab.batch.plan import Batch, Task, load_batch, plan_tasks
from vitlab.batch.run import run_batch, run_notebook

__all__ = ["Batch", "Task", "load_batch", "plan_tasks", "run_batch", "run_notebook"]
