"""What W&B wrote, read back key by key; and a server that answers as W&B's, badly, or not at all."""

import http.server
import json
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from ph_l2o.meta import wandb_file


class Written(NamedTuple):
    """What one start of a run has in its file."""

    run: Any
    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    metrics: dict[str, tuple[str, bool]]  # axis, and whether the minimum is kept
    artifacts: list[Any]
    exit_code: int | None

    def column(self, key: str) -> list[Any]:
        return [row[key] for row in self.history if key in row]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("run-*.wandb"))


def written(path: Path) -> Written:
    """W&B's own process writes the file; its last record is the run's end."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        records = list(wandb_file.records(path))
        if any(r.WhichOneof("record_type") == "exit" for r in records):
            break
        time.sleep(0.05)
    by_kind: dict[str, list[Any]] = {}
    for record in records:
        kind = record.WhichOneof("record_type")
        by_kind.setdefault(kind, []).append(getattr(record, kind))
    config, summary = {}, {}
    for update in by_kind.get("config", []):
        config |= wandb_file.values(update.update)
    for update in by_kind.get("summary", []):
        summary |= wandb_file.values(update.update)
    return Written(
        by_kind["run"][0],
        config,
        [wandb_file.values(row.item) for row in by_kind.get("history", [])],
        summary,
        {m.name or m.glob_name: (m.step_metric, m.summary.min) for m in by_kind.get("metric", [])},
        by_kind.get("artifact", []),
        by_kind["exit"][0].exit_code if "exit" in by_kind else None,
    )


_BUCKET = {
    "id": "b", "name": "stand_in", "displayName": "n", "sweepName": None, "historyLineCount": 0,
    "project": {"id": "p", "name": "ph_l2o", "entity": {"id": "e", "name": "mine"}},
}  # fmt: skip
_ANSWER = {
    "data": {
        "viewer": {"id": "u", "entity": "mine", "username": "u", "flags": "{}", "teams": {"edges": []}},
        "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None},
        "upsertBucket": {"inserted": True, "bucket": _BUCKET},
        "createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []},
    }
}


class StandIn(http.server.ThreadingHTTPServer):
    """A server in a thread: `good` as W&B's, `500`, or `hangs`; it can change its mind.

    All are at one address: W&B's client keeps its credentials by that, once in a process.
    """

    daemon_threads = True
    port = 0

    def __init__(self, mood: str):
        super().__init__(("127.0.0.1", StandIn.port), _Handler)
        StandIn.port = self.server_port
        self.mood, self.released, self.asked = mood, threading.Event(), 0
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def end(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def _answer(self) -> None:
        self.server.asked += 1
        if self.server.mood == "hangs":
            self.server.released.wait()
            return
        body = json.dumps(_ANSWER).encode()
        self.send_response(200 if self.server.mood == "good" else 500)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""
