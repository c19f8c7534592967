"""Runs killed by SIGKILL at random writes and steps end as if nothing had happened.

The killing is done by this file run as a script: a parent that has imported everything and started no thread forks one
child for every run, and the child kills itself at a given event. A resumption is another child.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import numpy as np
import pytest

WRITES = 0.7  # share of the kills that hit a write of a file; the others hit a step


def arm(point, when, log):
    """Count events, steps apart from writes, and die at one of them."""
    from zarr.storage import LocalStore

    from xdan.core.learning.trainer import Trainer
    from xdan.records.checkpoint import Checkpoint
    from xdan.records.streams import Stream

    lock, counts = threading.Lock(), {"step": 0, "write": 0}
    armed = [False]

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def event(kind, call, broken=None):
        with lock:
            counts[kind] += 1
            at = (kind, counts[kind]) == point
        if at and when == "before":
            die()
        if at and when == "within" and broken:
            broken()
            die()
        answer = call()
        if at:
            die()
        return answer

    def write(self, key, value, real):
        def broken():
            path = self.root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".0.partial").write_bytes(b"half")

        return event("write", lambda: real(self, key, value), broken) if armed[0] else real(self, key, value)

    def patch(cls, name, wrapped):
        real = getattr(cls, name)
        setattr(cls, name, lambda self, *args: wrapped(self, *args, real))

    for name in ("set", "set_sync"):
        if hasattr(LocalStore, name):
            patch(LocalStore, name, write)
    patch(Trainer, "step", lambda self, *args: event("step", lambda: args[-1](self, *args[:-1])))

    def writing(self, *args):
        *passed, real = args
        armed[0] = True
        return event("step", lambda: real(self, *passed))

    patch(Stream, "write", writing)
    patch(Stream, "write_back", writing)

    def finishing(self, attributes, real):
        armed[0] = False
        return real(self, attributes)

    patch(Stream, "finish", finishing)

    def saving(self, *args):
        *passed, real = args
        answer = real(self, *passed)
        armed[0] = True
        return answer

    patch(Checkpoint, "save", saving)
    return lambda: log.write_text(json.dumps(counts))


def fork(action):
    """Run in a child; its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tree(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}


def tasks(kind):
    """A run into a folder, and what it left there that must not depend on kills."""
    import dask

    import xdan
    from xdan.core.learning import Optimiser
    from xdan.training import loop

    model = xdan.Lorenz96(sites=8)
    ds = (
        xdan.twin(model, cycles=16, trajectories=4, seed=1).compute(scheduler="synchronous").chunk(trajectory=2, time=4)
    )
    architecture = xdan.ResidualCNN(filters=3, blocks=1, kernel=3, memory=1)
    settings = {"window": 4, "batch": 2, "steps": 12, "validate_every": 3, "progress": False}
    # So fast that the best network is an early one, which a checkpoint must keep beside the last.
    settings["optimiser"] = Optimiser(learning_rate=0.5, adam_learning_rate=0.1)
    dask.config.set(scheduler="threads", num_workers=2)
    if kind == "smoothed":

        def smooth(folder):
            xdan.baseline(ds, "etkf", members=4, smooth=True, store=folder / "run.zarr", progress=False)

        return smooth, lambda folder: tree(folder / "run.zarr")
    if kind == "stream":
        # A training would start threads in the parent: the network is made in a child.
        def run(folder):
            net = xdan.Network.from_module(architecture, ("x",), {})
            xdan.cycle(ds, net, store=folder / "run.zarr", progress=False)

        return run, lambda folder: tree(folder / "run.zarr")

    def train(folder):
        clock = Clock()
        loop.clock = clock
        source = model if kind == "endless" else ds
        net = xdan.train(source, architecture, checkpoint=folder / "checkpoint.zarr", **settings)
        net.to_zarr(folder / "net.zarr", mode="w")

    def left(folder):
        net = xdan.open_network(folder / "net.zarr")
        history = {
            str(name): v.values.tobytes().hex() for name, v in net.history.variables.items() if name != "seconds"
        }
        told = {key: value for key, value in net.description["training"].items() if key != "seconds"}
        weights = {name: value.tobytes().hex() for name, value in net.arrays.items()}
        return {"weights": weights, "history": history, "training": told}

    return train, left


class Clock:
    """Time that flies: a checkpoint is due every few steps."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 7.0
        return self.now


def compare(left, folder, reference, answer):
    """In a child, as reading a store starts threads."""
    got, expected = left(folder), json_or_bytes(reference)
    different = sorted(key for key in {*got, *expected} if got.get(key) != expected.get(key))
    answer.write_text(json.dumps(different))


def json_or_bytes(reference):
    import pickle

    return pickle.loads(reference.read_bytes())


def keep(left, folder, reference):
    import pickle

    reference.write_bytes(pickle.dumps(left(folder)))


def warm_up():
    """Import what a first training imports, here instead of in every child."""
    import torch

    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    for optimiser in (torch.optim.Adam, torch.optim.Muon):
        optimiser([weight]).step()


def main(kind, folder, kills):
    warm_up()
    folder = Path(folder)
    run, left = tasks(kind)
    log, reference, answer = folder / "log", folder / "reference", folder / "answer"

    def counted(where, point=None, when="after"):
        def action():
            where.mkdir(exist_ok=True)
            tell = arm(point, when, log)
            run(where)
            tell()

        return action

    assert fork(counted(folder / "whole")) == 0
    assert fork(lambda: keep(left, folder / "whole", reference)) == 0
    total = json.loads(log.read_text())
    rng = np.random.default_rng(len(kind))
    report = {"total": total, "kills": []}
    for number in range(int(kills)):
        what = "write" if rng.random() < WRITES else "step"
        point, when = (what, int(rng.integers(1, total[what] + 1))), str(rng.choice(["before", "within", "after"]))
        where = folder / str(number)
        killed = fork(counted(where, point, when))
        log.unlink(missing_ok=True)
        resumed = fork(counted(where))
        steps = json.loads(log.read_text())["step"] if log.exists() else None
        answer.unlink(missing_ok=True)
        fork(lambda where=where: compare(left, where, reference, answer))
        different = json.loads(answer.read_text()) if answer.exists() else None
        report["kills"].append(
            {"at": [*point, when], "killed": killed, "resumed": resumed, "steps": steps, "different": different}
        )
    (folder / "report.json").write_text(json.dumps(report))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
@pytest.mark.parametrize(("kind", "kills"), [("stream", 7), ("smoothed", 8), ("record", 7), ("endless", 2)])
def test_killed_and_resumed_ends_the_same(kind, kills, tmp_path):
    answer = subprocess.run(
        [sys.executable, __file__, kind, str(tmp_path), str(kills)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["kills"]) == kills
    for kill in report["kills"]:
        assert kill["killed"] == -signal.SIGKILL, kill
        assert (kill["resumed"], kill["different"]) == (0, []), (kill, answer.stderr)
    # And they did resume: at least some of the work was not done again.
    assert min(kill["steps"] for kill in report["kills"]) < report["total"]["step"] / 2
    assert all(kill["steps"] <= report["total"]["step"] for kill in report["kills"])


if __name__ == "__main__":
    main(*sys.argv[1:])
