"""Several processes train as one does: the same losses, the same weights, every utterance once."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdasr import pipeline, stages
from kdasr.cli import main
from kdasr.errors import ConfigError, NonFiniteLossError, RankLostError
from kdasr.interfaces import Batch, ModelOutput
from kdasr.labelling import DurationLimits, Settings
from kdasr.loader import Stream
from kdasr.losses import ctc
from kdasr.methods.teachers import EmaTeacher
from kdasr.models import load_model, save_model
from kdasr.ranks import Ranks, joined, ranks
from kdasr.schedule import ScheduledBatches
from kdasr.teachers.conformer import ConformerTeacher
from kdasr.training import sums
from kdasr.training.order import RankSteps
from kdasr.training.sums import GradientSums, StepSums, means
from tests.speech import shards
from tests.test_training import UNITS, losses, training


def on_ranks(count: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What `work` returns, or the error it raises, in each of `count` processes with one gloo group."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    # fork: a spawned process would import torch and SpeechBrain anew.
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(count)]

    def run(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        }  # fmt: skip
        try:
            with joined() as job:
                answer = work(job)
        except Exception as error:
            answer = error
        pipes[rank][1].send(answer if not isinstance(answer, Exception) else (type(answer), str(answer)))

    processes = [context.Process(target=run, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    answers = [receiver.recv() if receiver.poll(120) else None for receiver, _ in pipes]
    for process in processes:
        process.join(10)
        process.kill()
    return answers


def test_a_process_without_torchrun_is_alone() -> None:
    with joined() as job:
        assert job == ranks() == Ranks() and job.alone and job.first
        assert job.gather("x") == ["x"] and job.share([1, 2, 3]) == [1, 2, 3]
        assert job.device("cuda") == "cuda"


def test_a_process_that_is_told_of_others_but_not_which_it_is_is_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a batch system's variables may stand in any shell."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with joined() as job:
        assert job == Ranks()


def test_ranks_talk_and_share() -> None:
    def work(job: Ranks) -> Any:
        total = torch.tensor([1.0, 10.0]) * (job.rank + 1)
        job.add_up(total)
        with joined() as again:
            assert again is job
        return job.share(range(5)), job.gather(job.rank * 2), job.from_first(job.rank), total.tolist()

    assert on_ranks(2, work) == [
        (range(0, 5, 2), [0, 2], 0, [3.0, 30.0]),
        (range(1, 5, 2), [0, 2], 0, [3.0, 30.0]),
    ]
    assert ranks().alone
    assert Ranks(3, 8, 1).device("cuda") == "cuda:1" and Ranks(3, 8, 1).device("cpu") == "cpu"


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"nproc-per-node.*at most 2.*local rank of 2"), joined():
        pass


def test_a_rank_that_ends_is_told_of() -> None:
    def work(job: Ranks) -> Any:
        if job.rank == 1:
            raise ConfigError("broken")
        return job.gather(1)

    (kind, message), (other, _) = on_ranks(2, work)
    assert kind is RankLostError and "rank 0" in message and "last checkpoint" in message
    assert other is ConfigError


def broken_by(error: Exception, monkeypatch: pytest.MonkeyPatch) -> Exception:
    """What comes of an error of torch in a sum over ranks."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    monkeypatch.setenv("RANK", "1")
    own = isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError)
    with pytest.raises(type(error) if own else RankLostError) as caught:
        Ranks(1, 2).add_up(torch.zeros(1))
    return caught.value


NCCL_ERROR = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, unhandled system error (run with "
    "NCCL_DEBUG=INFO for details), NCCL version 2.27.5\nncclSystemError: System call (e.g. socket, malloc) "
    "or external library call failed or device error.\nLast error:\n"
)


def test_what_nccl_says_last_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = (
        "Error while creating shared memory segment /dev/shm/nccl-Ab1 (size 9637888), error: No space left"
    )
    found = broken_by(torch.distributed.DistBackendError(NCCL_ERROR + reason), monkeypatch)
    assert "rank 1: NCCL" in str(found) and "the network or the machine has a fault (NCCL_DEBUG=INFO" in str(
        found
    )
    assert "got NCCL error in: /pytorch" in str(found) and f"last error: {reason}" in str(found)


def test_a_remote_end_that_nccl_tells_of_is_a_lost_process(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        NCCL_ERROR.replace("ncclSystemError", "ncclRemoteError") + "socketProgress: Connection closed by peer"
    )
    found = broken_by(torch.distributed.DistBackendError(text), monkeypatch)
    assert "another process of this job has ended" in str(found) and "closed by peer" in str(found)
    assert "NCCL_DEBUG=INFO shows more" not in str(found)
    short = broken_by(RuntimeError("Connection reset\nfrom somewhere"), monkeypatch)
    assert "got Connection reset. A process that ended" in str(short)
    assert "rank 1: another" in str(broken_by(RuntimeError(""), monkeypatch))


def test_memory_that_is_too_small_is_no_lost_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError("CUDA error")):
        assert broken_by(error, monkeypatch) is error


def test_sums_are_means_over_batches_and_ranks() -> None:
    def work(job: Ranks) -> Any:
        sums = StepSums(["a", "b", "c"], "cpu")
        sums.add(torch.tensor(1.0 + job.rank), {"a": torch.tensor(0.5), "b": torch.tensor(0.5 + job.rank)})
        if job.rank == 1:
            sums.add(torch.tensor(6.0), {"a": torch.tensor(6.0)})
        parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
        parameters[0].grad = torch.tensor([1.0, 2.0])
        if job.rank == 1:
            parameters[1].grad = torch.tensor([5.0, 5.0])
        with GradientSums(parameters, job) as gradients:
            gradients.finish(sums.values)
        loss, terms = means(["a", "b", "c"], sums.values)
        return loss, terms, [None if p.grad is None else p.grad.tolist() for p in parameters]

    # Three batches in all; no batch has a term "c", and no rank a gradient of the third parameter.
    terms = {"a": pytest.approx(7 / 3), "b": 1.0}
    assert on_ranks(2, work) == [(3.0, terms, [[2.0, 4.0], [5.0, 5.0], None])] * 2


def test_a_message_has_gradients_of_one_dtype_and_ends_where_it_is_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sums, "_BUCKET", 10)
    kinds = [(4, torch.float32), (6, torch.float32), (1, torch.float32), (3, torch.float64)]
    parameters = [nn.Parameter(torch.zeros(size, dtype=dtype)) for size, dtype in kinds]
    found = sums._buckets(parameters)
    assert [[len(parameter) for parameter in bucket] for bucket in found] == [[4, 6], [1], [3]]


def test_gradients_leave_while_the_last_backward_pass_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where ranks end with batches of which one does not use what the other does."""
    monkeypatch.setattr("kdasr.training.sums._BUCKET", 1)  # each parameter by itself
    said: list[str] = []

    class Telling(Ranks):
        def adding_up(self, values: Tensor) -> Callable[[], None]:
            said.append(f"{values.numel()} sent")
            return super().adding_up(values)

    def work(job: Ranks) -> Any:
        torch.manual_seed(1)
        layers = [nn.Linear(size, size + 1, bias=False) for size in (1, 2, 3)]
        parameters = [layer.weight for layer in layers]
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(lambda one: said.append(f"{one.numel()} made"))

        def loss(rank: int, *used: int) -> Tensor:
            x = torch.ones(1, 1)
            for number, layer in enumerate(layers):
                x = layer(x) * (rank + 1) if number in used else nn.functional.pad(x, (0, 1))
            return x.sum()

        every, last = (0, 1, 2), ((0, 1, 2), (0, 1))
        with GradientSums(parameters, Telling(job.rank, job.count)) as gradients:
            loss(job.rank, *every).backward()
            gradients.send_as_made()
            loss(job.rank, *last[job.rank]).backward()
            said.append("end")
            values = torch.ones(1, 2)
            gradients.finish(values)
            found = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
            loss(0, *every).backward()  # of the next step: nothing is sent before its last
        total = sum(loss(rank, *used) for rank in range(2) for used in (every, last[rank]))
        for one, expected in zip(found, torch.autograd.grad(total, parameters), strict=True):
            torch.testing.assert_close(one, expected)
        return values.tolist(), said

    first = ["12 made", "6 made", "2 made"]
    sent = ["12 made", "12 sent", "6 made", "6 sent", "2 made", "2 sent", "end", "5 sent"]
    held = ["6 made", "2 made", "end", "12 sent", "6 sent", "2 sent", "5 sent"]
    assert on_ranks(2, work) == [
        ([[2.0, 2.0]], [*first, *sent, *first]),
        ([[2.0, 2.0]], [*first, *held, *first]),
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_utterance_of_an_epoch_is_seen_once_by_some_rank(data: Path, count: int) -> None:
    stream = Stream([data / "labelled"], 8.0, 3, units=UNITS)
    batches = ScheduledBatches({"labelled": stream}, [("labelled", 1)])
    parts = [RankSteps(batches, 3, Ranks(rank, count)) for rank in range(count)]
    per_epoch = len(stream.epoch_batches(0))
    positions = [p for step in range(-(-per_epoch // 3)) for part in parts for p in part.positions(step)]
    assert sorted(positions)[:per_epoch] == list(range(per_epoch))
    assert len(set(positions)) == len(positions)
    keys = [key for position in positions if position < per_epoch for key in batches[position].keys]
    assert sorted(keys) == sorted(item.entry.key for item in stream.items)


class Projection(nn.Module):
    """A loss that learns, on every other batch only."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.line = nn.Linear(32, 4)

    def forward(self, output: ModelOutput, batch: Batch) -> Tensor:
        if len(batch.keys) % 2:
            return output.log_probs_btv.sum() * 0.0
        taught = batch.teachers["past"].log_probs_btv.exp().mean() if batch.teachers else 0.0
        return (self.line(output.layers_btd[0]) - taught).square().mean()


def drawn(output: ModelOutput, batch: Batch) -> Tensor:
    """A loss that draws random numbers, on the dev set, too."""
    return output.log_probs_btv.sum() * 0.0 + torch.rand(())


def many(data: Path, checkpoints: Path, **settings: Any) -> Any:
    """A training from a model that is there, with dropout, augmentation, a loss that learns, one that draws
    and a moving teacher, four batches a step."""
    torch.manual_seed(1)
    made = training(
        data, checkpoints, steps=settings.pop("steps", 4), eval_every=2, accumulate=4,
        further={"shape": (0.5, Projection()), "drawn": (0.1, drawn)},
        teachers={"past": EmaTeacher()}, **settings,
    )  # fmt: skip
    made.streams["labelled"] = Stream([data / "labelled"], 4.0, 3, units=UNITS, speeds=(0.9, 1.1))
    made.dev = Stream([data / "dev"], 4.0, 3, units=UNITS)
    assert len(made.dev.epoch_batches(0)) >= 4
    made.start = "weights"
    return made


@pytest.mark.slow
def test_1_2_and_4_ranks_give_the_same_losses_and_weights(data: Path, tmp_path: Path) -> None:
    many(data, tmp_path / "c1").run(tmp_path / "m1")
    expected, weights = losses(tmp_path / "c1"), load_model(tmp_path / "m1").model.state_dict()
    # Four steps and the looks before, amidst and behind them.
    assert [row["step"] for row in expected if "dev_wer" in row] == [0, 2, 4] and len(expected) == 7
    for count in (2, 4):
        names = tmp_path / f"c{count}", tmp_path / f"m{count}"
        facts = on_ranks(count, lambda job, names=names: many(data, names[0]).run(names[1]))
        assert facts == [facts[0]] * count
        found = losses(names[0])
        assert [row.keys() for row in found] == [row.keys() for row in expected]
        for row, other in zip(found, expected, strict=True):
            assert row == pytest.approx(other, abs=1e-5)
        for name, tensor in load_model(names[1]).model.state_dict().items():
            torch.testing.assert_close(tensor, weights[name], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_run_of_2_ranks_is_resumed_by_3_and_by_1(data: Path, tmp_path: Path) -> None:
    many(data, tmp_path / "whole", steps=6).run(tmp_path / "whole-model")
    where = tmp_path / "c", tmp_path / "m"
    many_steps = {"steps": 6, "checkpoint_every": 1}

    def cut(count: int, at: int) -> None:
        class Stop:
            __qualname__ = ctc.__qualname__
            left = at

            def __call__(self, output: ModelOutput, batch: Batch) -> Tensor:
                Stop.left -= torch.is_grad_enabled()
                if Stop.left == 0:
                    raise ConfigError("stopped")
                return ctc(output, batch)

        answers = on_ranks(count, lambda job: many(data, where[0], loss=Stop(), **many_steps).run(where[1]))
        assert all(kind in (ConfigError, RankLostError) for kind, _ in answers)

    cut(2, 4)
    cut(3, 3)
    many(data, where[0], **many_steps).run(where[1])
    rows, expected = losses(where[0]), losses(tmp_path / "whole")
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-4)


def test_ranks_that_see_other_data_are_refused(data: Path, tmp_path: Path) -> None:
    """A machine may have a copy of its own that is not the others'."""

    def work(job: Ranks) -> Any:
        run = training(data, tmp_path / "c", accumulate=2)
        if job.rank == 1:
            run.streams = {"labelled": Stream([data / "labelled"], 8.0, 3, units=UNITS, max_utterances=5)}
        return run.run(tmp_path / "m")

    for kind, text in on_ranks(2, work):
        assert (
            kind is ConfigError
            and "do not see the same data" in text
            and "something else on process 1" in text
        )
    assert not (tmp_path / "c").exists()


def test_ranks_that_see_other_checkpoints_are_refused(data: Path, tmp_path: Path) -> None:
    """A machine may have a folder of its own of the same name."""
    training(data, tmp_path / "c0", steps=1, accumulate=2).run(tmp_path / "m")
    answers = on_ranks(
        2, lambda job: training(data, tmp_path / f"c{job.rank}", steps=1, accumulate=2).run(tmp_path / "m")
    )
    for kind, text in answers:
        assert kind is ConfigError and "do not see the same checkpoints" in text and "steps 1, 0" in text


def test_too_few_batches_for_the_ranks_are_refused(data: Path, tmp_path: Path) -> None:
    run = training(data, tmp_path / "c")
    answers = on_ranks(2, lambda job: run.run(tmp_path / "m"))
    assert all(kind is ConfigError and "--optimisation.accumulate 2" in text for kind, text in answers)


def test_ranks_that_wait_for_one_another_are_told_so_once(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = training(data, tmp_path / "c", steps=1, accumulate=3)
    on_ranks(2, lambda job: run.run(tmp_path / "m"))
    said = capfd.readouterr().err
    assert said.count("tiny: on cpu, fp32") == said.count("labelled audio only, 2 processes") == 1
    assert said.count("2 processes share the 3 batches of a step and idle for 25 % of it") == 1
    assert ["dev_wer" in row for row in losses(tmp_path / "c")] == [False, True]


def test_too_few_batches_are_refused_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verb(*, name: str, optimisation: Any = None) -> dict[str, Any]:
        (tmp_path / f"{name}-{ranks().rank}").touch()
        return {}

    monkeypatch.setattr(pipeline, "VERBS", {"export": verb, "train": verb})
    head = f"work_dir: {tmp_path}/work\n"
    (tmp_path / "one.yaml").write_text(f"stage: export\nname: one\n{head}")
    (tmp_path / "two.yaml").write_text(
        f"stage: train\nname: two\n{head}optimisation: !new:kdasr.training.Optimisation\n    steps: 1\n"
    )
    (tmp_path / "run.yaml").write_text("stages: [one.yaml, two.yaml]\n")
    answers = on_ranks(2, lambda job: pipeline.run_folder(tmp_path, {}))
    for kind, text in answers:
        assert kind is ConfigError
        assert "two: optimisation.accumulate: 2 processes cannot share a step of 1 batches" in text
        assert "expected at least 2, ideally a multiple of it; got 1" in text
    assert not list(tmp_path.glob("one-*"))
    on_ranks(2, lambda job: pipeline.run_folder(tmp_path, {"optimisation.accumulate": 2}))
    assert sorted(path.name for path in tmp_path.glob("*-[01]")) == ["one-0", "two-0", "two-1"]
    # What is trained needs no share any more, however many they are.
    answers = on_ranks(3, lambda job: pipeline.run_folder(tmp_path, {"optimisation.accumulate": 2}))
    assert answers == [tmp_path / "work"] * 3


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_by_name(data: Path, tmp_path: Path) -> None:
    def breaks(output: ModelOutput, batch: Batch) -> Tensor:
        return ctc(output, batch) * (float("nan") if ranks().rank == 1 else 1.0)

    def work(job: Ranks) -> Any:
        return training(data, tmp_path / "c", loss=breaks, accumulate=2).run(tmp_path / "m")

    answers = on_ranks(2, work)
    assert all(kind is NonFiniteLossError for kind, _ in answers)
    assert all("step 4" in text and "labelled-00" in text for _, text in answers)
    # Of the two batches of that step only the second one's utterances are suspected.
    stream = training(data, tmp_path / "c").streams["labelled"]
    good, bad = (set(stream.batch(position).keys) for position in (6, 7))
    assert bad - good and good - bad
    for _, text in answers:
        assert all(key in text for key in bad) and not any(key in text for key in good - bad)
    assert not list((tmp_path / "c").glob("CKPT*"))


def test_ranks_share_the_shards_to_label(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    audio = shards(tmp_path / "audio", 6, per_shard=2, with_text=False)
    torch.manual_seed(1)
    teacher = ConformerTeacher(
        vocab_size=UNITS.vocab_size, width=16, num_layers=1, num_heads=2, kernel_frames=3
    )
    save_model(tmp_path / "teacher", teacher, UNITS)
    where = {"teacher": str(tmp_path / "teacher"), "audio": str(audio), "device": "cpu"}
    settings = Settings(filters=[DurationLimits(min_seconds=1.2)])

    def work(job: Ranks) -> Any:
        return stages.label(**where, out=str(tmp_path / "labels"), settings=settings)

    def figures(summary: dict[str, Any]) -> dict[str, Any]:
        timed = ("wall_s", "times_real_time", "worker_hours", "teacher_share", "encode_share", "fetch_share")
        kept = {name: value for name, value in summary.items() if name not in timed}
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in kept.items()}

    first, second = on_ranks(2, work)
    assert first == second  # the summary is of all ranks, and said once
    assert capfd.readouterr().err.count("3 shards labelled") == 1
    alone = stages.label(**where, out=str(tmp_path / "alone"), settings=settings)
    assert figures(first) == figures(alone)
    assert first["shards"] == 3 and 0 < first["labelled"] < 6 and first["num_failed"] == 6 - first["labelled"]
    names = sorted(path.name for path in (tmp_path / "alone").glob("shard*"))
    assert len(names) == 6
    for name in names:
        assert (tmp_path / "labels" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_ranks_of_one_machine_share_its_cores_to_decode_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdasr.labelling.settings.usable_cores", lambda: 8)
    gpu = torch.device("cuda")

    def work(job: Ranks) -> Any:
        found = Settings().decoders_for(gpu), Settings(decoders=7).decoders_for(gpu)
        return found, job.local_count, Settings().decoders_for(gpu, workers=1)

    # As torchrun says; the second time there are more processes than cores.
    for local_count, share in (("2", 4), ("16", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local_count)
        assert on_ranks(2, work) == [((share, 7), int(local_count), 4)] * 2
    assert Settings().decoders_for(gpu) == 4


@pytest.mark.slow
def test_ranks_run_a_folder_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def verb(name: str) -> Callable[..., dict[str, Any]]:
        def run(*, name: str = name) -> dict[str, Any]:
            (tmp_path / f"{name}-{ranks().rank}").touch()
            return {"by": ranks().rank}

        return run

    monkeypatch.setattr(pipeline, "VERBS", {name: verb(name) for name in ("train", "label", "export")})
    for stage in ("train", "label", "export"):
        (tmp_path / f"{stage}.yaml").write_text(f"stage: {stage}\nwork_dir: {tmp_path}/work\n")
    (tmp_path / "run.yaml").write_text("stages: [train.yaml, label.yaml, export.yaml]\n")
    folders = on_ranks(2, lambda job: pipeline.run_folder(tmp_path, {}))
    assert folders == [tmp_path / "work"] * 2
    found = sorted(path.name for path in tmp_path.glob("*-[01]"))
    assert found == ["export-0", "label-0", "label-1", "train-0", "train-1"]
    for path in tmp_path.glob("*-[01]"):
        path.unlink()
    on_ranks(2, lambda job: pipeline.run_folder(tmp_path, {}))
    assert not list(tmp_path.glob("*-[01]"))


def test_verbs_that_are_no_work_for_several_processes_are_refused(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert on_ranks(2, lambda job: main(["verify", str(tmp_path)])) == [2, 2]
    assert "kdasr verify cannot run in several processes" in capfd.readouterr().err
