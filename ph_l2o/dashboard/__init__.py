"""A workspace and a report in W&B, made by code: `python -m ph_l2o.dashboard --help`."""
