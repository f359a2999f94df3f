"""Saddles: problems that start near one, in closed form, with a test of whether it was escaped."""

from ph_l2o.tasks.saddles.saddle import KINDS, Saddle, SaddleProblem

__all__ = ["KINDS", "Saddle", "SaddleProblem"]
