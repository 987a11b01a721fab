"""One shard: labels are the teacher's posteriors, whatever else is in the shard."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from kdasr.errors import ConfigError, DamagedShardError, SoftLabelError
from kdasr.features import log_mel
from kdasr.interfaces import Utterance
from kdasr.labelling import Settings, label_shard, shard_job
from kdasr.labelling.engines import on_one_machine
from kdasr.shards import Shard, ShardEntry, read_shard, read_utterance, write_shards
from kdasr.soft_labels import Full, LabelShard, TopP, open_label_shard
from kdasr.teachers.on_device import with_log_mel_on_its_device
from tests.labelling.tiny import TinySource, TinyTeacher, make_audio

TEACHER = TinySource().load("cpu")


def labels_for(audio: Path, out: Path, settings: Settings | None = None, **kwargs: Any) -> LabelShard:
    label_shard(TEACHER, audio, out, settings or Settings(codec=Full()), **kwargs)
    return open_label_shard(out / f"{audio.stem}.kdsl", verify=True)


def test_labels_are_what_the_teacher_says_of_each_utterance_alone(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path / "audio", 6, per_shard=6)
    labels = labels_for(audio, tmp_path / "labels")
    for utterance in read_shard(audio):
        features = log_mel(utterance.samples)
        wanted, frames = TEACHER.model.offline(features[None], torch.tensor([len(features)]))
        got = labels.read(utterance.key)
        assert got.num_frames == int(frames[0])
        assert got.log_probs.reshape(wanted.shape[1:]) == pytest.approx(wanted[0].detach().numpy(), abs=1e-4)


def test_long_utterances_are_labelled_in_windows_like_short_ones(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path / "audio", 3, per_shard=3)
    whole = labels_for(audio, tmp_path / "whole")
    settings = Settings(codec=Full(), window_seconds=0.4, overlap_seconds=0.16)
    windows = labels_for(audio, tmp_path / "windows", settings)
    # The tiny teacher looks at single output frames, so windows cannot change anything.
    for key, wanted in whole:
        assert windows.read(key).log_probs == pytest.approx(wanted.log_probs, abs=1e-4)


class Remembers(TinyTeacher):
    """Keeps what it hears, batch by batch."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[Tensor, list[int]]] = []

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        self.heard.append((features_btf, lengths_b.tolist()))
        return super().offline(features_btf, lengths_b)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "windows", [{}, {"window_seconds": 0.4, "overlap_seconds": 0.16}], ids=["whole", "cut"]
)
def test_a_teacher_that_computes_its_log_mel_hears_the_same(
    tmp_path: Path, windows: Any, precision: Any
) -> None:
    audio, model = make_audio(tmp_path / "audio", 6, per_shard=6)[0], Remembers()
    settings = Settings(batch_seconds=1.5, precision=precision, **windows)
    teacher = replace(TEACHER, model=model)
    label_shard(teacher, audio, tmp_path / "here", settings)
    wanted, model.heard = model.heard, []
    there = with_log_mel_on_its_device(teacher)
    assert there.model is not model and with_log_mel_on_its_device(there) is there
    label_shard(there, audio, tmp_path / "there", settings)
    assert len(wanted) > 2 and [lengths for _, lengths in model.heard] == [lengths for _, lengths in wanted]
    for (found_btf, _), (wanted_btf, _) in zip(model.heard, wanted, strict=True):
        torch.testing.assert_close(found_btf, wanted_btf, atol=1e-5, rtol=0)
    headers = [open_label_shard(tmp_path / name / f"{audio.stem}.kdsl").header for name in ("here", "there")]
    assert headers[0] == headers[1]


def test_batch_size_changes_labels_by_no_more_than_float_noise(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path / "audio", 8, per_shard=8)
    small = labels_for(audio, tmp_path / "small", Settings(codec=Full(), batch_seconds=0.5))
    large = labels_for(audio, tmp_path / "large", Settings(codec=Full(), batch_seconds=100))
    for key, wanted in small:
        assert large.read(key).log_probs == pytest.approx(wanted.log_probs, abs=1e-4)


def test_several_decoders_change_nothing(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path / "audio", 12, per_shard=12)
    windows: dict[str, Any] = {"batch_seconds": 0.5, "window_seconds": 0.4, "overlap_seconds": 0.16}
    for decoders in (1, 4):
        labels_for(audio, tmp_path / str(decoders), Settings(decoders=decoders, **windows))
    one, four = ((tmp_path / name / f"{audio.stem}.kdsl").read_bytes() for name in ("1", "4"))
    assert one == four
    assert Settings().decoders_for(torch.device("cpu")) == 1
    with pytest.raises(ConfigError, match="decoders"):
        Settings(decoders=0)


def test_every_thread_begins_with_the_gpu_of_its_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[str, torch.device]] = []

    def use(device: torch.device) -> None:
        used.append((threading.current_thread().name.split("_")[0], device))

    monkeypatch.setattr(torch.cuda, "set_device", use)
    second, begin = torch.device("cuda:1"), shard_job._use_device
    for device in (second, torch.device("cuda"), torch.device("cpu")):
        begin(device)
    assert used == [("MainThread", second)]
    # The teacher is on the CPU of this machine, and its threads are told that it is on the second GPU.
    monkeypatch.setattr(
        shard_job, "_use_device", lambda device: begin(second if device == TEACHER.device else device)
    )
    (audio,) = make_audio(tmp_path / "audio", 6, per_shard=6)
    labels_for(audio, tmp_path / "labels", Settings(decoders=2, batch_seconds=0.5))
    assert {name for name, _ in used[1:]} == {"decode", "encode"}
    assert {device for _, device in used} == {second}


def test_workers_on_one_machine_share_its_cores_to_decode_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdasr.labelling.settings.usable_cores", lambda: 16)
    for workers, share in ((1, 4), (4, 4), (6, 2), (64, 1)):
        assert on_one_machine(Settings(), workers, "cuda").decoders == share
    assert on_one_machine(Settings(decoders=2), 4, "cuda").decoders == 2
    assert on_one_machine(Settings(), 4, "cpu").decoders == 1


def test_a_long_utterance_is_decoded_once_for_all_its_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its windows fill several batches, each of which ends where the next one goes on."""
    rng = np.random.default_rng(0)
    items = [Utterance(name, (0.1 * rng.standard_normal(16_000 * 6)).astype(np.float32)) for name in "abc"]
    (audio,) = write_shards(items, tmp_path / "audio")
    decoded: list[str] = []

    def counted(shard: Shard, entry: ShardEntry) -> Utterance:
        decoded.append(entry.key)
        return read_utterance(shard, entry)

    monkeypatch.setattr("kdasr.labelling.shard_job.read_utterance", counted)
    windows: dict[str, Any] = {"batch_seconds": 1.6, "window_seconds": 0.4, "overlap_seconds": 0.16}
    labels_for(audio, tmp_path / "labels", Settings(**windows))
    # The last window of each is shorter, and those three come after all others.
    assert sorted(decoded) == ["a", "a", "b", "b", "c", "c"]


def test_the_same_shard_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path / "audio", 4)
    (again,) = make_audio(tmp_path / "elsewhere" / "audio", 4)
    for source, name in ((audio, "a"), (again, "b")):
        label_shard(TEACHER, source, tmp_path / name, Settings())
    for name in ("shard-000000.kdsl", "shard-000000.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def odd_audio(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    sizes = {"short": 70, "one-frame": 160, "plain": 16_000, "long": 16_000 * 100}
    items = [Utterance(k, (0.1 * rng.standard_normal(n)).astype(np.float32)) for k, n in sizes.items()]
    items.append(Utterance("silence", np.zeros(8_000, np.float32)))
    return write_shards(items, folder, description="odd")[0]


def test_very_short_very_long_and_silent_audio_is_labelled_or_named(tmp_path: Path) -> None:
    audio = odd_audio(tmp_path / "audio")
    labels = labels_for(audio, tmp_path / "labels", Settings(codec=TopP()))
    assert list(labels.failures) == ["short"]
    assert "too short" in labels.failures["short"]
    assert labels.lengths() == {"one-frame": 1, "plain": 25, "long": 2500, "silence": 13}


@pytest.mark.parametrize(
    ("poison", "reason"), [("raise", "RuntimeError: a poison utterance"), ("nan", "do not sum to 1")]
)
def test_a_poison_utterance_is_named_and_its_neighbours_are_labelled(
    tmp_path: Path, poison: str, reason: str
) -> None:
    (audio,) = make_audio(tmp_path / "audio", 6, per_shard=6, loud=(2,))
    result = label_shard(TinySource(poison=poison).load("cpu"), audio, tmp_path / "labels", Settings())
    assert [key for key, _ in result.manifest["failed"]] == ["utt-002"]
    assert reason in result.manifest["failed"][0][1]
    assert result.manifest["labelled"] == 5


def half_seconds(folder: Path, count: int, per_shard: int) -> list[Path]:
    """Shards of utterances of half a second, which make batches without padding."""
    rng = np.random.default_rng(0)
    items = [
        Utterance(f"{n:02d}", (0.1 * rng.standard_normal(8_000)).astype(np.float32)) for n in range(count)
    ]
    return write_shards(items, folder, max_utterances=per_shard)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_batches_that_the_memory_does_not_hold_are_halved_and_so_are_those_after_them(
    tmp_path: Path, error: Exception
) -> None:
    shards = half_seconds(tmp_path / "audio", 32, per_shard=16)
    teacher = TinySource().load("cpu")
    model, calls = cast(Any, teacher.model), []
    offline = model.offline

    def with_memory_for_five(features_btf: torch.Tensor, lengths_b: torch.Tensor) -> Any:
        calls.append(len(features_btf))
        if len(features_btf) > 5:
            raise error
        return offline(features_btf, lengths_b)

    model.offline = with_memory_for_five
    results = [label_shard(teacher, shard, tmp_path / "labels", Settings(codec=Full())) for shard in shards]
    assert calls == [16, 8, 4, 4, 4, 4, *[4, 4, 4, 4]]
    assert [result.halved for result in results] == [2, 0]
    assert [result.batch_seconds for result in results] == [pytest.approx(4 * 0.5, abs=0.1)] * 2
    for shard in shards:
        whole = labels_for(shard, tmp_path / "whole")
        for key, labels in open_label_shard(tmp_path / "labels" / f"{shard.stem}.kdsl"):
            assert labels.log_probs == pytest.approx(whole.read(key).log_probs, abs=1e-4)


class _ShortOfMemory(Full):
    """A codec whose memory does not hold more than five utterances, nor any at all while `is_full`."""

    def __init__(self) -> None:
        self.tried: list[int] = []
        self.is_full = False

    def encode_many(self, log_probs: Any, keys: Any) -> Any:
        self.tried.append(len(keys))
        if self.is_full or len(keys) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().encode_many(log_probs, keys)


def test_batches_for_which_the_codec_has_no_memory_are_halved_and_so_are_those_after_them(
    tmp_path: Path,
) -> None:
    shards = half_seconds(tmp_path / "audio", 32, per_shard=16)
    teacher, codec = TinySource().load("cpu"), _ShortOfMemory()
    settings = Settings(codec=codec, batch_seconds=4.0)
    results = [label_shard(teacher, shard, tmp_path / "labels", settings) for shard in shards]
    # Two batches of 8 were with the codec before the first of them had failed.
    assert codec.tried == [8, 8, 4, 4, 4, 4, *[4, 4, 4, 4]]
    assert [result.halved for result in results] == [2, 0]
    assert [result.batch_seconds for result in results] == [pytest.approx(4 * 0.5, abs=0.1)] * 2
    for shard in shards:
        wanted = labels_for(shard, tmp_path / "whole")
        found = open_label_shard(tmp_path / "labels" / f"{shard.stem}.kdsl")
        assert found.keys == wanted.keys and found.failures == {}
        for key, labels in found:
            assert labels.log_probs == pytest.approx(wanted.read(key).log_probs, abs=1e-4)


def test_memory_that_the_codec_lacks_for_one_utterance_is_not_its_fault(tmp_path: Path) -> None:
    (audio,) = half_seconds(tmp_path / "audio", 4, per_shard=4)
    codec = _ShortOfMemory()
    codec.is_full = True
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        label_shard(TinySource().load("cpu"), audio, tmp_path / "labels", Settings(codec=codec))
    assert set(codec.tried) == {4, 2, 1} and not (tmp_path / "labels").exists()


def test_an_utterance_that_cannot_be_decoded_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (audio,) = make_audio(tmp_path / "audio", 4)
    from kdasr.labelling import shard_job

    read = shard_job.read_utterance

    def broken(shard: Any, entry: Any) -> Utterance:
        if entry.key == "utt-001":
            raise DamagedShardError("utt-001 cannot be decoded", where=shard.path)
        return read(shard, entry)

    monkeypatch.setattr(shard_job, "read_utterance", broken)
    labels = labels_for(audio, tmp_path / "labels")
    assert labels.failures == {"utt-001": "unusable audio: utt-001 cannot be decoded"}
    assert len(list(labels)) == 3


def test_a_disk_that_fails_is_not_an_utterance_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard was whole when it was hashed; it is to be labelled again, not to be done without labels."""
    (audio,) = make_audio(tmp_path / "audio", 8, per_shard=8)
    calls = []

    def unmounted(shard: Shard, entry: ShardEntry) -> Utterance:
        calls.append(entry.key)
        if len(calls) == 4:
            audio.rename(tmp_path / "away.tar")
        return read_utterance(shard, entry)

    monkeypatch.setattr("kdasr.labelling.shard_job.read_utterance", unmounted)
    with pytest.raises(DamagedShardError, match="the audio shard cannot be read"):
        labels_for(audio, tmp_path / "labels")
    assert not list((tmp_path / "labels").glob("*"))
    (tmp_path / "away.tar").rename(audio)
    assert len(list(labels_for(audio, tmp_path / "labels"))) == 8


def test_memory_that_one_utterance_does_not_fit_is_not_its_fault(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path / "audio", 4)
    teacher = TinySource().load("cpu")

    def without_memory(*_: torch.Tensor) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    cast(Any, teacher.model).offline = without_memory
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        label_shard(teacher, audio, tmp_path / "labels", Settings())


@pytest.mark.parametrize(
    ("said", "blamed"),
    [
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`", False),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", False),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", True),
        ("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm(handle)`", True),
    ],
)
def test_a_gpu_s_library_that_fails_is_no_utterance_s_fault(tmp_path: Path, said: str, blamed: bool) -> None:
    """It may be well again with the next utterance; a shape that it does not take is another matter."""
    (audio,) = make_audio(tmp_path / "audio", 4)
    teacher = TinySource().load("cpu")
    model, calls = cast(Any, teacher.model), []
    offline = model.offline

    def failing(*inputs: torch.Tensor) -> Any:
        calls.append(len(inputs[0]))
        if len(calls) <= 2:
            raise RuntimeError(said)
        return offline(*inputs)

    model.offline = failing
    if not blamed:
        with pytest.raises(RuntimeError, match=said.partition(":")[0]):
            label_shard(teacher, audio, tmp_path / "labels", Settings())
        assert not list((tmp_path / "labels").glob("*"))
        return
    result = label_shard(teacher, audio, tmp_path / "labels", Settings())
    assert len(result.manifest["failed"]) == 1 and said in result.manifest["failed"][0][1]


def test_excluded_utterances_keep_their_place_and_reason(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path / "audio", 4)
    labels = labels_for(audio, tmp_path / "labels", exclude={"utt-002": "kills"})
    assert labels.keys == ["utt-000", "utt-001", "utt-002", "utt-003"]
    assert labels.failures == {"utt-002": "kills"}


@pytest.mark.parametrize("damage", ["cut", "bit", "zeros", "empty"])
def test_a_damaged_audio_shard_is_not_labelled(tmp_path: Path, damage: str) -> None:
    (audio,) = make_audio(tmp_path / "audio", 4)
    data = bytearray(audio.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "bit":
        data[len(data) // 2] ^= 1
    elif damage == "zeros":
        data[1024:2048] = bytes(1024)
    else:
        data.clear()
    audio.write_bytes(data)
    with pytest.raises(DamagedShardError, match=r"shard-000000\.tar"):
        label_shard(TEACHER, audio, tmp_path / "labels", Settings())
    assert not (tmp_path / "labels").exists()


def test_a_teacher_with_the_wrong_number_of_frames_is_noticed(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path / "audio", 2)
    teacher = TinySource().load("cpu")
    model: Any = teacher.model
    offline = model.offline
    for wrong in (-1, 50):

        def miscounting(x: Tensor, n: Tensor, wrong: int = wrong) -> tuple[Tensor, Tensor]:
            log_probs, frames = offline(x, n)
            more = log_probs[:, :1].expand(-1, max(0, wrong), -1)
            return torch.cat([log_probs, more], 1), frames + wrong

        model.offline = miscounting
        with pytest.raises(SoftLabelError, match=r"failed on all 2 utterances.*frames instead of"):
            label_shard(teacher, audio, tmp_path / "labels", Settings())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log_probs, frames: (log_probs, frames + 1), "fewer frames than its lengths say"),
        (lambda log_probs, frames: (log_probs.transpose(0, 1), frames), "wrong axes"),
        (lambda log_probs, frames: (log_probs, frames / frames.max()), "whole numbers of frames"),
    ],
)
def test_a_teacher_whose_output_breaks_the_contract_is_noticed(
    tmp_path: Path, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], message: str
) -> None:
    """Within the slack, frames of the padding became labels of the shorter utterances of a batch."""
    (audio,) = make_audio(tmp_path / "audio", 4)
    teacher = replace(TinySource().load("cpu"), slack_frames=2)
    model: Any = teacher.model
    offline = model.offline
    model.offline = lambda x, n: change(*offline(x, n))
    with pytest.raises(ConfigError, match=message):
        label_shard(teacher, audio, tmp_path / "labels", Settings())
    assert not (tmp_path / "labels").exists()


def test_half_precision_labels_are_close_and_marked(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path / "audio", 4)
    exact = labels_for(audio, tmp_path / "exact")
    rough = labels_for(audio, tmp_path / "rough", Settings(codec=Full(), precision="bfloat16"))
    assert rough.header.settings["precision"] == "bfloat16"
    assert rough.header.config_hash != exact.header.config_hash
    for key, wanted in exact:
        assert rough.read(key).log_probs == pytest.approx(wanted.log_probs, abs=0.1)


def test_a_precision_may_have_the_name_that_trainings_give_it() -> None:
    for short, name in (("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")):
        assert Settings(precision=short) == Settings(precision=name)  # type: ignore[arg-type]
    assert Settings(precision="bf16").precision == "bfloat16"


@pytest.fixture
def tf32_allowed() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.usefixtures("tf32_allowed")
def test_float32_is_float32_and_training_keeps_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether SpeechBrain, which allows TensorFloat-32, was imported must not show in labels of a GPU."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    seen: list[tuple[bool, bool]] = []
    plain = TEACHER.model.offline

    def offline(*inputs: torch.Tensor) -> Any:
        seen.append((matmul.allow_tf32, cudnn.allow_tf32))
        return plain(*inputs)

    monkeypatch.setattr(TEACHER.model, "offline", offline)
    (audio,) = make_audio(tmp_path / "audio", 2, per_shard=2)
    labels_for(audio, tmp_path / "labels")
    assert seen and set(seen) == {(False, False)}
    assert matmul.allow_tf32 and cudnn.allow_tf32


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="precision"):
        Settings(precision="int3")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="overlap"):
        Settings(window_seconds=4, overlap_seconds=5)


def test_of_several_reasons_the_first_in_the_audio_is_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    quiet = (0.01 * rng.standard_normal(16_000)).astype(np.float32)
    loud = np.sign(quiet) * np.float32(0.9)
    items = [Utterance("a", np.concatenate([quiet, loud])), Utterance("b", np.concatenate([loud, quiet]))]
    items.append(Utterance("c", 10 * quiet))
    (audio,) = write_shards(items, tmp_path / "audio")
    teacher = TinySource(poison="raise").load("cpu")
    model: Any = teacher.model
    offline = model.offline

    def nan_where_quiet(features_btf: torch.Tensor, lengths_b: torch.Tensor) -> Any:
        log_probs_btv, frames_b = offline(features_btf, lengths_b)
        quiet_b = features_btf.amax((1, 2)) < 2.0
        return log_probs_btv.masked_fill(quiet_b[:, None, None], torch.nan), frames_b

    # Quiet windows give NaN, which the codec finds in its own thread; loud ones make the teacher raise.
    model.offline = nan_where_quiet
    label_shard(teacher, audio, tmp_path / "labels", Settings(window_seconds=0.4, overlap_seconds=0.16))
    failures = open_label_shard(tmp_path / "labels" / "shard-000000.kdsl").failures
    assert "do not sum to 1" in failures["a"] and "the teacher raised" in failures["b"]
    assert "c" not in failures
