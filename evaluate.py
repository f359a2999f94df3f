"""Compare optimizers on the same test problems: python evaluate.py task=mnist 'optimizers=[best.ckpt, adam]'."""

from ph_l2o.cli import evaluate

if __name__ == "__main__":
    evaluate()
