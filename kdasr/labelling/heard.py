"""What a teacher heard, read from its stored labels, and its error rate where somebody transcribed the audio.

The error rate is told for all that has labels and for the surest shares of it, each with the confidence
at which that share begins: what a `MinConfidence` of a label job, or the hours of a selection, would buy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.error_rates import count_errors
from kdasr.errors import ConfigError, UnitsError
from kdasr.interfaces import BLANK_ID, SoftLabels
from kdasr.labelling.audio_source import list_audio, local_copy
from kdasr.labelling.filters import Measure, check_measure, score, threshold
from kdasr.manifest import Shard, read_manifest
from kdasr.reasons import duration
from kdasr.shards import open_shard, read_places, read_texts
from kdasr.soft_labels import LabelFolder, LabelShard
from kdasr.soft_labels.runs import best_classes, best_path, split_run
from kdasr.storage import Place, is_url
from kdasr.text import Units, letters_in, load_units, normalise_by_word, not_normal_text

_SHARES = (1.0, 0.9, 0.75, 0.5, 0.25)
# Of a frame in which a teacher is surer than this that nothing is said, there is nothing to tell.
_SURE_OF_BLANK = 0.95
_MOST_CLASSES = 4
# Transcript, and source and offset.
_Facts = tuple[str | None, tuple[str | None, float | None]]


@dataclass(frozen=True)
class Heard:
    """What a teacher made of an utterance.

    Attributes:
        key: of the utterance.
        seconds: of audio.
        text: of the best path, normalised but for words that cannot be; None if there are no labels.
        confidence: larger is surer, so of entropies the negative one (`kdasr.labelling.own_scale` turns it
            back); None if there are no labels.
        failure: why there are no labels; empty if there are.
        reference: the transcript, empty where nothing is said, or None where the shard has none.
        at_once: whether the labels have times, and a unit in the first frame.
        source, offset: as in `kdasr.shards.Placed`; None where the shard has none.
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
    """What the labels in folder `labels` say of each utterance of `audio`, in order.

    Args:
        audio: the audio shards that were labelled. Transcripts and places are read where they lie on this
            machine.
        labels: their labels, with the teacher's units beside them.
        measure: of confidence; see `kdasr.labelling.filters.Confidence`.

    Raises:
        ConfigError: an unknown measure.
        UnitsError: the teacher's units are not beside its labels, or not those of the labels.
        SoftLabelError: labels are missing, damaged or of other audio.
    """
    check_measure(measure)
    LabelFolder(labels)  # says what is wrong where there are no labels at all
    units = load_units(labels)
    letters = letters_in(units.symbols)
    for shard, found in labelled_shards(audio, labels):
        check_units(found, units, labels)
        for entry, (reference, place) in zip(shard.entries, _facts(audio, shard), strict=True):
            seconds = entry.num_samples / SAMPLE_RATE_HZ
            if failure := found.failures.get(entry.key, ""):
                yield Heard(entry.key, seconds, None, None, failure, reference, False, *place)
                continue
            item = found.read(entry.key)
            text, _ = normalise_by_word(heard_text(item, units), letters)
            at_once = found.header.frame_shift_ms > 0 and begins_with_a_unit(item)
            yield Heard(entry.key, seconds, text, score(item, measure), "", reference, at_once, *place)


def _facts(audio: Place, shard: Shard) -> list[_Facts]:
    """Transcript and place of each utterance; of audio at a URL, which is not fetched for them, none."""
    if is_url(audio):
        return [(None, (None, None))] * shard.count
    opened = open_shard(shard.path)
    return list(zip(read_texts(opened), read_places(opened), strict=True))


def heard_frames(*, audio: Place, labels: Place, key: str) -> list[str]:
    """For people: what the teacher believed of one utterance, in each frame that it was not sure is blank.

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
            facts = _facts(audio, shard)[keys.index(key)]
            seconds = shard.entries[keys.index(key)].num_samples / SAMPLE_RATE_HZ
            return _described(key, seconds, facts, found, units)
    raise ConfigError("there is no such utterance", where="--key", expected=f"a key in {audio}", got=key)


def _described(key: str, seconds: float, facts: _Facts, found: LabelShard, units: Units) -> list[str]:
    item, header, (reference, (source, offset)) = found.read(key), found.header, facts
    place = "" if source is None else f", {source}"
    place += "" if offset is None else f" at {offset:.1f} s"
    return [
        f"{key}: {duration(seconds)}{place}",
        f"teacher: {header.teacher} ({header.teacher_hash[:12]}), codec {header.codec}",
        *([] if reference is None else [f"transcript: {reference}"]),
        f"best path: {heard_text(item, units)}",
        *_frames(item, units, header.frame_shift_ms * header.subsampling / 1000),
    ]


def _frames(labels: SoftLabels, units: Units, frame_s: float) -> list[str]:
    """Time (or, of labels without times, the number) and the likeliest classes of each frame of interest."""
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
    """For people: how much has labels, and the error rate of the surest of what has a transcript, too."""
    labelled = [item for item in found if item.text is not None]
    audio, all_audio = (duration(sum(item.seconds for item in items)) for items in (labelled, found))
    lines = [f"{len(labelled)} of {len(found)} utterances have labels, {audio} of {all_audio}"]
    at_once = sum(item.at_once for item in labelled)
    if 2 * at_once > len(labelled):
        lines.append(
            f"{at_once} of them begin with a unit in their first frame, heard or not, and would teach so "
            'frame by frame (docs/distillation.md, "The first unit")'
        )
    # Known silence too: words heard in it are errors, as they are to `kdasr evaluate`.
    judged = [item for item in labelled if item.reference is not None]
    if not judged:
        return lines
    if not any(map(_has_words, judged)):
        return [*lines, f"no error rate: nothing is said in the {len(judged)} that have a transcript, too"]
    judged.sort(key=lambda item: -(item.confidence or 0.0))
    # A teacher may write letters that the transcripts have lost.
    letters = letters_in(item.reference for item in judged)
    texts, normal = zip(*(normalise_by_word(str(item.text), letters) for item in judged), strict=True)
    lines.append(f"WER of the {len(judged)} that have a transcript, too, by {measure}:")
    # As a `MinConfidence` has it, which keeps what is equal: entropy up to, the others from.
    word = "up to" if measure == "entropy" else "from"
    lines.append(f"{'the surest':>12}  {word:>8}  {'hours':>7}  {'WER %':>6}")
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
        lines.append(f"{share:>11.0%}   {least:8.3f}  {seconds / 3600:7.2f}  {wer:>6}")
    if not_normal := normal.count(False):
        lines.append(not_normal_text(not_normal))
    return lines


def _has_words(item: Heard) -> bool:
    return bool(item.reference and item.reference.split())


def labelled_shards(audio: Place, labels: Place) -> Iterator[tuple[Shard, LabelShard]]:
    """Each audio shard, by its manifest alone, and its labels.

    Raises:
        ShardError, SoftLabelError: audio or labels are missing, damaged, or not of each other.
    """
    folder = LabelFolder(labels)
    for place in list_audio(audio):
        with local_copy(place, manifest_only=True) as path:
            shard = read_manifest(path)
        yield shard, folder.shard_for(Path(shard.path.name), shard.sha256)


def check_units(found: LabelShard, units: Units, labels: Place) -> None:
    """Raise UnitsError if labels are not over the units that lie beside them."""
    if found.header.units_hash != units.hash:
        raise UnitsError(
            "the units beside the labels are not those of the labels",
            where=str(labels),
            expected=found.header.units_hash,
            got=units.hash,
            fix="Label again.",
        )


def heard_text(labels: SoftLabels, units: Units) -> str:
    """What the best path over stored posteriors says."""
    return units.decode(best_path(labels))


def begins_with_a_unit(labels: SoftLabels) -> bool:
    """Whether the most probable class of the first frame is a unit."""
    return labels.num_frames > 0 and int(best_classes(labels)[0]) != BLANK_ID
