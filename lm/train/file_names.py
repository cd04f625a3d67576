"""What the files of a run's folder are called that more than one module looks for."""

METRICS_FILE = "metrics.jsonl"
RUN_FILE = "run.yaml"
"""The run file as it was resolved, every default written out."""
LOCK_FILE = "lock"
"""Held by the process that works in the folder."""
COMPLETE_FILE = "complete.json"
"""There where nothing is left to do."""
