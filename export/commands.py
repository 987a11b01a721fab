"""The commands for devices: `transcribe`, `decoding-graph`, `demo-page`, `bench device`.

Nothing heavy is imported before a command runs, so that `kdasr --help` need not wait for torch.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdasr.errors import install_line

_OTHER_WORDS = "also allow other words, at this cost for each of their units (such as 1)"
Verb = Callable[..., argparse.ArgumentParser]


def add_commands(verb: Verb) -> None:
    """Adds the commands; `verb(name, run, help)` makes a parser, as in `kdasr.cli.build_parser`."""
    _add_transcribe(verb("transcribe", transcribe, "transcribe audio, as lines of source<TAB>text"))
    graph = verb(
        "decoding-graph", decoding_graph, "write a list of words as a decoding graph for sherpa-onnx"
    )
    graph.add_argument("--model", type=Path, required=True, help="folder of a student or of its export")
    graph.add_argument(
        "--lexicon",
        metavar="PATH",
        action="append",
        required=True,
        help="a text file or a folder of labelled shards, whose words are allowed",
    )
    graph.add_argument("--out", type=Path, required=True, help="output file, such as words.fst")
    graph.add_argument("--other-words", type=float, metavar="NATS", help=_OTHER_WORDS)
    page = verb("demo-page", demo_page, "serve a page that runs a student in the browser")
    page.add_argument("--model", type=Path, required=True, help="folder of a student or its wave-onnx export")
    page.add_argument("--port", type=int, default=8000, help="port on this machine (default 8000)")
    bench = verb("bench", bench_device, "measure a student on this machine")
    bench.add_argument("what", choices=["device"], help="speed, memory and delays of every engine")
    bench.add_argument("--model", type=Path, required=True, help="folder of a student or of its export")
    bench.add_argument("--test", type=Path, help="folder of labelled shards, for WER and delays")
    bench.add_argument(
        "--aligner", type=Path, help="folder of the teacher; delays are relative to its alignment"
    )
    bench.add_argument("--rounds", type=int, default=3, help="how often to time each engine (default 3)")
    bench.add_argument("--out", type=Path, help="also write the figures to this file, as JSON")


def _add_transcribe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, required=True, help="a model folder, an export folder or a file in it"
    )
    parser.add_argument(
        "--stream", action="store_true", help="decode chunk by chunk and show partial results"
    )
    parser.add_argument(
        "--chunk-ms", type=int, help="milliseconds of audio in a chunk (only for a student's folder)"
    )
    parser.add_argument(
        "--lexicon",
        metavar="PATH",
        action="append",
        help="recognise only the words in a text file or a folder of labelled shards",
    )
    parser.add_argument("--other-words", type=float, metavar="NATS", help=_OTHER_WORDS)
    parser.add_argument(
        "--beam",
        type=int,
        help="beam search with this many prefixes (default: 16 with a lexicon, else greedy)",
    )
    parser.add_argument("--json", action="store_true", help="JSON lines with word times")
    install = install_line("mic").replace("%", "%%")  # argparse treats % as the start of a field
    parser.add_argument(
        "--microphone",
        action="store_true",
        help=f"transcribe the microphone until Ctrl-C (to install: {install})",
    )
    parser.add_argument("--device", help="which microphone, by name or number")
    parser.add_argument("--rate", type=int, help="sample rate of PCM on standard input (default 16000)")
    parser.add_argument(
        "--endpoint",
        action=argparse.BooleanOptionalAction,
        help="print a line for each segment between pauses (default: only for live audio)",
    )
    parser.add_argument("--pause", type=float, help="seconds of silence that end a segment (default 1)")
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="audio files; - for raw 16-bit mono PCM on stdin"
    )


def transcribe(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    """`kdasr transcribe`."""
    from export.show import Request, show_transcripts

    device = arguments.device
    show_transcripts(
        Request(
            arguments.model,
            tuple(arguments.files),
            microphone=arguments.microphone,
            device=int(device) if device is not None and device.isdigit() else device,
            stream=arguments.stream,
            json_lines=arguments.json,
            endpoint=arguments.endpoint,
            min_silence_s=arguments.pause,
            chunk_ms=arguments.chunk_ms,
            lexicon=tuple(arguments.lexicon or ()),
            other_word_nats=arguments.other_words,
            beam=arguments.beam,
            rate_hz=arguments.rate,
        )
    )


def decoding_graph(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    """`kdasr decoding-graph`."""
    from export.decoding_graph import write_decoding_graph

    counts = write_decoding_graph(arguments.model, arguments.lexicon, arguments.out, arguments.other_words)
    print(f"{arguments.out}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))


def demo_page(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    """`kdasr demo-page`."""
    from export.demo_page import DemoPage

    page = DemoPage(arguments.model, port=arguments.port)
    print(f"{page.url}   (Ctrl-C to stop)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        page.serve()


def bench_device(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    """`kdasr bench device`."""

    from export.bench import bench_device, table
    from kdasr.shards import list_shards
    from kdasr.storage import commit_json

    shards = list_shards(arguments.test) if arguments.test else ()
    figures = bench_device(arguments.model, shards=shards, aligner=arguments.aligner, rounds=arguments.rounds)
    print("\n".join(table(figures)))
    if arguments.out is not None:
        commit_json(arguments.out, figures)
