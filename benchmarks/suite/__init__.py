"""The groups of `benchmarks/run.py`, one module each with `measured(options)` and, where it needs one, `tables`."""

GROUPS = (
    "meta_training",
    "compile_modes",
    "scaling",
    "memory",
    "optimizer_step",
    "drop_in",
    "data_loading",
    "tuning",
    "start_up",
)
