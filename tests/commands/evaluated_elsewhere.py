"""A task that cannot be pickled, and a baseline that has its process killed, once."""

import os
import signal
import time
from pathlib import Path

from ph_l2o.optimizers.classical import SGD
from ph_l2o.tasks import Quadratic


class WithLambda(Quadratic):
    def __init__(self, **settings):
        super().__init__(**settings)
        self._label = lambda: "cannot be pickled"


class Deadly(SGD):
    """It waits until another optimizer's tuning is in the cache; that it killed is in the file `killed`."""

    def update(self, params, grads, loss, state):
        if not Path("killed").exists():
            while not list(Path("cache").glob("sgd-*.json")):
                time.sleep(0.01)
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().update(params, grads, loss, state)
