"""Why a module cannot be an optimizee, in one line."""

from __future__ import annotations

from torch import Tensor

from ph_l2o.tasks.factory import one_line

NO_HOOKS = "torch.utils.checkpoint, or other hooks on saved tensors"
# What torch says, and what it is about.
_ABOUT = {
    NO_HOOKS: f"uses {NO_HOOKS}, which are lost for several problems at once; leave them out",
    "setup_context": "uses an autograd.Function without setup_context, as torch.utils.checkpoint(use_reentrant=True) "
    "does; leave it out, or give it one",
    "doesn't have storage": "takes a tensor out of torch, as by .numpy() or .data_ptr(); use torch's functions",
    "modified inplace": "changes a parameter or an input in place, as max_norm does; leave it out",
    "randomness": "draws random numbers other than by torch's layers; give it a class attribute draws_randomly = True",
}


def explained(name: str, error: Exception, inputs: Tensor) -> str:
    """What is wrong, and what to do.

    Args:
        name: Of the module's class.
        error: What its forward pass raised.
        inputs: What it was run on, `(B, batch, …)`.
    """
    text = str(error)
    if text.startswith("task."):
        return text
    for words, about in _ABOUT.items():
        if words in text:
            return f"task.model={name}: {about}"
    if text.startswith(("vmap:", "Batching rule not implemented")):
        return (
            f"task.model={name}: torch.vmap cannot run it for several problems at once; replace the layer, or give the "
            f"module a batched_forward(tensors, inputs). torch says: {one_line(error)}"
        )
    return (
        f"task.model={name}: fails on inputs of shape {tuple(inputs.shape[1:])}, {inputs.dtype}; mend it, or the sizes "
        f"of the task ({type(error).__name__}: {one_line(error)})"
    )
