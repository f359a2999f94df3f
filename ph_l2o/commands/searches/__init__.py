"""Searches of hyperparameters with Optuna: a sweeper whose study lies in a file, its trials and its report."""
