"""A callback whose training gets into trouble, by its seed."""

import os
import signal
from pathlib import Path

from pytorch_lightning.callbacks import Callback

TYPED = ("plugins=[trouble]", "+callbacks.trouble={_target_:trouble.Trouble,seed:${seed}}")


class Trouble(Callback):
    """Seed 1 raises an error in its third outer step, 2 is killed there, 3 has no finite meta-gradient.

    With the environment variable `NOT_KILLED`, nothing is killed; with `KILL_LAUNCHER`, the process above is, once.
    """

    def __init__(self, seed):
        self.seed = seed

    def on_fit_start(self, trainer, pl_module):
        if self.seed == 3:
            whole = pl_module.training_step
            pl_module.training_step = lambda *args: whole(*args) * float("nan")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2 and self.seed == 1:
            raise OSError(28, "No space left on device", "metrics.csv")
        if trainer.global_step == 2 and self.seed == 2 and "NOT_KILLED" not in os.environ:
            if "KILL_LAUNCHER" not in os.environ:
                os.kill(os.getpid(), signal.SIGKILL)
            elif not Path("killed").exists():
                Path("killed").touch()
                os.kill(os.getppid(), signal.SIGKILL)
