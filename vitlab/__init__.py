"""vitlab: a Jupyter-first workbook for Vision Transformers.

Import what you need from the subpackages: `vitlab.data`, `vitlab.models`, `vitlab.training`, `vitlab.evaluation`,
`vitlab.explain`, `vitlab.plots`, `vitlab.runs`. Importing `vitlab` itself loads none of them.
"""

__version__ = "0.1.0"
