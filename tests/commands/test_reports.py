"""Pages that the commands leave, and the profiler's table."""


def test_a_training_and_an_evaluation_leave_a_page(command, run_folder, tmp_path):
    outcome = command("train", "debug=profiler", "optimizer=sgd", "compare=false", "seed=3")
    assert outcome.code == 0, outcome.err
    assert "Profiler Report" in outcome.out and "run_training_batch" in outcome.out
    text = (run_folder() / "report.html").read_text()
    assert "the lowest validation score is" in text and "ok after" in text
    assert "python train.py debug=profiler optimizer=sgd compare=false seed=3" in text
    assert (
        '<th scope=row data-order="seed">seed</th>\n<td data-order="3" class="left">3</td>\n<td data-order="0"' in text
    )
    assert "report.html shows this in a browser" in outcome.out
    run_folder().rename(tmp_path / "trained")
    best = tmp_path / "trained" / "checkpoints" / "best.ckpt"
    outcome = command("evaluate", f"optimizers=[{best}, adam]", "horizon=3", "num_problems=3", "tuning_problems=2")
    assert outcome.code == 0, outcome.err
    text = (run_folder() / "report.html").read_text()
    assert "<title>quadratic_sgd, adam on quadratic</title>" in text and "python evaluate.py &#39;optimizers=[" in text
    assert (run_folder() / "curves.csv").read_text().startswith("optimizer,step,median,low,high\nquadratic_sgd,0,")
