"""A grid of parameters over a chain of notebooks: planned, executed, and carried on from where it
stands.
"""

from vitlab.batch.plan import Batch, Task, load_batch, plan_tasks
from vitlab.batch.schedule import run_batch, run_notebook

__all__ = ["Batch", "Task", "load_batch", "plan_tasks", "run_batch", "run_notebook"]
