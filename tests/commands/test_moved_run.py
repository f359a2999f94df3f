"""Files of a run tell of no folder of the machine, so that a run can be moved and its checkpoints published."""

import shutil

import torch

from ph_l2o.checkpoints import add_checksum
from ph_l2o.optim import export


def test_no_folder_is_told_and_a_moved_run_goes_on(command, run_folder, tmp_path, mnist_root):
    sizes = ("task.hidden_sizes=[2]", "task.batch_size=2", "evaluation.baselines=[sgd]")
    words = ("debug=default", "task=mnist", *sizes, f"paths.data={mnist_root}")
    outcome = command("train", *words, f"paths.runs={tmp_path / 'runs'}", "compare=true", "weights=null")
    assert outcome.code == 0, outcome.err
    folder = run_folder()
    best, last = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    assert export.main([str(best), str(folder / "exported.safetensors")]) == 0
    for path in (best, last, folder / "exported.safetensors", folder / "comparison.json", folder / "comparison.csv"):
        content = path.read_bytes()
        for place in (tmp_path, mnist_root, tmp_path.name):
            assert str(place).encode() not in content, path
    state = torch.load(last, weights_only=True)
    assert state["ph_l2o"]["config"]["task"]["data_dir"] == mnist_root.name
    (monitored,) = [s for key, s in state["callbacks"].items() if "val/score" in key]
    assert monitored["best_model_path"] == "best.ckpt" and list(monitored["best_k_models"]) == ["best.ckpt"]

    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved)
    before, last = (moved / "checkpoints" / "best.ckpt").read_bytes(), moved / "checkpoints" / "last.ckpt"
    score = torch.tensor(-9e9)
    monitored["best_model_score"] = monitored["kth_value"] = monitored["best_k_models"]["best.ckpt"] = score
    add_checksum(state)  # nothing will be as good
    torch.save(state, last)
    outcome = command("train", *words, f"ckpt_path={last}", "meta.outer_steps=6", "compare=false")
    assert outcome.code == 0, outcome.err
    assert torch.load(last, weights_only=True)["global_step"] == 6
    assert (moved / "checkpoints" / "best.ckpt").read_bytes() == before
