"""What a teacher heard, read from its stored labels, and its error rate if the audio has transcripts.

The error rate is reported for all labelled utterances and for the most confident shares of them, each with
its lowest confidence. This shows the effect of a `MinConfidence` filter or of a selection by hours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.error_rates import count_errors
from kdasr.errors import ConfigError, UnitsError
from kdasr.interfaces import BLANK_ID, SoftLabels
from kdasr.labelling.audio_source import list_audio, local_copy
from kdasr.labelling.filters import Measure, check_measure, score, threshold
from kdasr.manifest import Shard, read_manifest
from kdasr.reasons import counted, duration
from kdasr.shards import open_shard, read_metas
from kdasr.soft_labels import LabelFolder, LabelShard
from kdasr.soft_labels.runs import best_classes, best_path, split_run
from kdasr.storage import Place, is_url
from kdasr.text import Units, letters_in, load_units, normalise_by_word, not_normal_text

_SHARES = (1.0, 0.9, 0.75, 0.5, 0.25)
# Frames whose blank probability is at least this are not listed.
_SURE_OF_BLANK = 0.95
_MOST_CLASSES = 4


@dataclass(frozen=True)
class Heard:
    """What a teacher heard in an utterance.

    Attributes:
        key: of the utterance.
        seconds: of audio.
        text: of the best path, normalised except for words that cannot be; None if there are no labels.
        confidence: larger is more confident, so entropy is negated (`kdasr.labelling.own_scale` converts it
            back); None if there are no labels.
        failure: why there are no labels; empty if there are.
        reference: the transcript, empty if nothing is said; None if the shard has none.
        at_once: whether the labels have times and a unit in the first frame.
        source, offset: as in `kdasr.shards.Placed`; None if the shard has none.
    """

    key: str
    seconds: float
    text: str | None
    confidence: float | None
    failure: str
    reference: str | None
    at_once: bool = False
    source: str | None = None
    offset: float | None = None


def heard(*, audio: Place, labels: Place, measure: Measure = "best_path") -> Iterator[Heard]:
    """What the teacher heard in each utterance of `audio`, in order, by the labels in folder `labels`.

    Args:
        audio: the audio shards that were labelled. Transcripts, sources and offsets are read only if the
            shards are on this machine.
        labels: their labels, with the teacher's units in the same folder.
        measure: of confidence; see `kdasr.labelling.filters.Confidence`.

    Raises:
        ConfigError: the measure is unknown.
        UnitsError: the folder of labels lacks the teacher's units, or has others.
        SoftLabelError: labels are missing, damaged or of other audio.
    """
    check_measure(measure)
    LabelFolder(labels)  # raises the right error if there are no labels at all
    units = load_units(labels)
    letters = letters_in(units.symbols)
    for shard, found in labelled_shards(audio, labels):
        check_units(found, units, labels)
        for entry, meta in zip(shard.entries, _metas(audio, shard), strict=True):
            reference, *place = map(meta.get, ("text", "source", "offset"))
            seconds = entry.num_samples / SAMPLE_RATE_HZ
            if failure := found.failures.get(entry.key, ""):
                yield Heard(entry.key, seconds, None, None, failure, reference, False, *place)
                continue
            item = found.read(entry.key)
            text, _ = normalise_by_word(heard_text(item, units), letters)
            at_once = found.header.frame_shift_ms > 0 and begins_with_a_unit(item)
            yield Heard(entry.key, seconds, text, score(item, measure), "", reference, at_once, *place)


def _metas(audio: Place, shard: Shard) -> list[dict[str, Any]]:
    """The metadata of each utterance; empty for audio at a URL, which is not fetched."""
    return [{}] * shard.count if is_url(audio) else read_metas(open_shard(shard.path))


def heard_frames(*, audio: Place, labels: Place, key: str) -> list[str]:
    """Printable: the transcript of an utterance if it has one, what was heard and its error rate, and the
    likeliest classes in each frame that is not clearly blank.

    Raises:
        ConfigError: no utterance of `audio` has this key, or it has no labels.
        UnitsError, SoftLabelError: as for `heard`.
    """
    units = load_units(labels)
    for shard, found in labelled_shards(audio, labels):
        check_units(found, units, labels)
        keys = [entry.key for entry in shard.entries]
        if key in keys:
            if failure := found.failures.get(key, ""):
                raise ConfigError("this utterance has no labels", where=key, got=failure)
            metas, number = _metas(audio, shard), keys.index(key)
            seconds = shard.entries[number].num_samples / SAMPLE_RATE_HZ
            letters = letters_in(meta.get("text") for meta in metas)
            return _described(key, seconds, metas[number], found, units, letters)
    raise ConfigError("no utterance has this key", where="--key", expected=f"a key in {audio}", got=key)


def _described(
    key: str, seconds: float, meta: Mapping[str, Any], found: LabelShard, units: Units, letters: str
) -> list[str]:
    item, header = found.read(key), found.header
    text = heard_text(item, units)
    reference, source, offset = map(meta.get, ("text", "source", "offset"))
    place = "" if source is None else f", {source}"
    place += "" if offset is None else f" at {offset:.1f} s"
    return [
        f"{key}: {duration(seconds)}{place}",
        f"teacher: {header.teacher} ({header.teacher_hash[:12]}), codec {header.codec}",
        *([] if reference is None else [f"transcript: {reference}"]),
        f"best path: {text}",
        *([] if reference is None else _error_rate(reference, text, letters)),
        *_frames(item, units, header.frame_shift_ms * header.subsampling / 1000),
    ]


def _error_rate(reference: str, text: str, letters: str) -> list[str]:
    """The error rate of one text, whose words are normalised as transcripts with these letters are."""
    if not reference.split():
        return ["no error rate: the transcript contains no words"]
    normal_text, is_normal = normalise_by_word(text, letters)
    counts = count_errors([reference], [normal_text])
    line = f"WER: {counts.wer:.1f} %, {counted(counts.errors, 'error')} in {counted(counts.words, 'word')}"
    return [line] if is_normal else [line, not_normal_text(1)]


def _frames(labels: SoftLabels, units: Units, frame_s: float) -> list[str]:
    """Time (frame number if the labels have no times) and likeliest classes of frames not clearly blank."""
    lines = []
    for frame, run in enumerate(split_run(labels, [1] * labels.num_frames)):
        order = np.argsort(-run.log_probs, kind="stable")[:_MOST_CLASSES]
        likeliest = [(int(run.ids[one]), float(np.exp(run.log_probs[one]))) for one in order]
        if likeliest[0][0] == BLANK_ID and likeliest[0][1] >= _SURE_OF_BLANK:
            continue
        when = f"{frame * frame_s:8.2f} s" if frame_s else f"{frame:6}"
        lines.append(when + "".join(f"   {units.symbols[one]} {share:.2f}" for one, share in likeliest))
    return lines


def heard_summary(found: Sequence[Heard], measure: Measure) -> list[str]:
    """Printable: how much has labels, and error rates of the most confident shares with transcripts."""
    labelled = [item for item in found if item.text is not None]
    audio, all_audio = (duration(sum(item.seconds for item in items)) for items in (labelled, found))
    lines = [f"{len(labelled)} of {len(found)} utterances have labels, {audio} of {all_audio}"]
    at_once = sum(item.at_once for item in labelled)
    if 2 * at_once > len(labelled):
        lines.append(
            f"{at_once} of them have a unit in their first frame, whether or not it is heard there; "
            'frame by frame, a student would learn to do the same (docs/distillation.md, "The first unit")'
        )
    # Including known silence: words heard in it are errors, as in `kdasr evaluate`.
    judged = [item for item in labelled if item.reference is not None]
    if not judged:
        return lines
    if not any(map(_has_words, judged)):
        return [*lines, f"no error rate: the {len(judged)} that also have a transcript contain no words"]
    judged.sort(key=lambda item: -(item.confidence or 0.0))
    # The teacher's units may have letters that the transcripts lack.
    letters = letters_in(item.reference for item in judged)
    texts, normal = zip(*(normalise_by_word(str(item.text), letters) for item in judged), strict=True)
    lines.append(f"WER of the {len(judged)} that also have a transcript, by {measure}:")
    # `MinConfidence` keeps what equals the threshold: "up to" for entropy, "from" for other measures.
    word = "up to" if measure == "entropy" else "from"
    lines.append(f"{'most confident':>14}  {word:>8}  {'hours':>7}  {'WER %':>6}")
    for share in _SHARES:
        surest = judged[: max(1, round(share * len(judged)))]
        references = [str(item.reference) for item in surest]
        wer = (
            f"{count_errors(references, texts[: len(surest)]).wer:.1f}"
            if any(map(_has_words, surest))
            else "–"
        )
        least = threshold(surest[-1].confidence or 0.0, measure)
        seconds = sum(item.seconds for item in surest)
        lines.append(f"{share:>13.0%}   {least:8.3f}  {seconds / 3600:7.2f}  {wer:>6}")
    if not_normal := normal.count(False):
        lines.append(not_normal_text(not_normal))
    return lines


def _has_words(item: Heard) -> bool:
    return bool(item.reference and item.reference.split())


def labelled_shards(audio: Place, labels: Place) -> Iterator[tuple[Shard, LabelShard]]:
    """Pairs of an audio shard, of which only the manifest is read, and its labels.

    Raises:
        ShardError, SoftLabelError: audio or labels are missing or damaged, or do not belong together.
    """
    folder = LabelFolder(labels)
    for place in list_audio(audio):
        with local_copy(place, manifest_only=True) as path:
            shard = read_manifest(path)
        yield shard, folder.shard_for(Path(shard.path.name), shard.sha256)


def check_units(found: LabelShard, units: Units, labels: Place) -> None:
    """Raise UnitsError if labels have other units than those in their folder."""
    if found.header.units_hash != units.hash:
        raise UnitsError(
            "the units in this folder are not those of its labels",
            where=str(labels),
            expected=found.header.units_hash,
            got=units.hash,
            fix="Label again.",
        )


def heard_text(labels: SoftLabels, units: Units) -> str:
    """The text of the best path through stored posteriors."""
    return units.decode(best_path(labels))


def begins_with_a_unit(labels: SoftLabels) -> bool:
    """Whether the most probable class of the first frame is a unit."""
    return labels.num_frames > 0 and int(best_classes(labels)[0]) != BLANK_ID
