"""Export of a streaming student to an ExecuTorch program for XNNPACK, with 16 kHz samples as input.

    OUT/model.pte, OUT/model.int8.pte, OUT/tokens.txt, OUT/units.json, OUT/model.json

The method `forward` has the interface of `export.wave_student` at batch size 1; the constant method
`kdasr_facts` gives the metadata as the UTF-8 bytes of a JSON object. ExecuTorch's dependencies conflict
with some of kdasr's, so it needs an environment of its own.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from export import require
from export.contract import EXECUTORCH_FORMAT, own_metadata, read_metadata
from export.light_graphs import light_graphs
from export.packing import StateLayout
from export.parity import WAVE_TOLERANCE
from export.wave_student import WaveStudent
from kdasr.errors import ExportError, ModelError
from kdasr.interfaces import StreamingModel
from kdasr.streaming import SampleWindow, SampleWindows
from kdasr.text import Units

FLOAT_FILE = "model.pte"
INT8_FILE = "model.int8.pte"
EXTRA = "executorch"
_FACTS_METHOD = "kdasr_facts"
_aten = torch.ops.aten
# Operations whose last bit depends on the engine.
_ROUNDED_ELSEWISE = {
    *(_aten.cos.default, _aten.sin.default, _aten.exp.default, _aten.log.default, _aten.tanh.default),
    *(_aten.sigmoid.default, _aten.rsqrt.default, _aten.sqrt.default, _aten._softmax.default),
    *(_aten.pow.Tensor_Scalar, _aten.pow.Tensor_Tensor, _aten.pow.Scalar),
    *(_aten.sum.dim_IntList, _aten.mean.dim, _aten.mm.default, _aten.bmm.default, _aten.linear.default),
}


class ExecutorchModel:
    """An ExecuTorch program, on one CPU thread, as a `ChunkModel` for one stream.

    Args:
        path: the file.

    Raises:
        ModelError: no file, a damaged one, or one of another kind.
        MissingDependencyError: executorch is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ModelError("the model file does not exist", where=path)
        with _quiet():
            runtime = require("executorch.runtime", EXTRA)
            _use_one_thread()
        try:
            # Keep the program, since its methods do not keep it alive.
            with _quiet():
                self._program = runtime.Runtime.get().load_program(str(path))
                self._forward = self._program.load_method("forward")
                facts = self._program.load_method(_FACTS_METHOD).execute([])[0]
            metadata = json.loads(bytes(facts.tolist()))
        except (RuntimeError, ValueError, AttributeError) as error:
            raise ModelError(
                "ExecuTorch cannot run the file",
                where=path,
                got=(str(error).strip() or type(error).__name__).splitlines()[0][:200],
                fix="It is damaged, truncated or of another origin: export or copy it again.",
            ) from error
        self.facts = read_metadata(metadata, path, EXECUTORCH_FORMAT)
        self.shift, self.window = self.facts.shift, self.facts.window
        self.subsampling, self.vocab_size = self.facts.subsampling, self.facts.vocab_size

    def initial_state(self, batch_size: int = 1) -> torch.Tensor:
        if batch_size != 1:
            raise ModelError(
                "this program can only run one stream", where=self.path, expected=1, got=batch_size
            )
        return torch.zeros(1, self.facts.state_floats + 1)

    def front_end(self) -> SampleWindows:
        return SampleWindows(self.window, self.shift)

    def step(self, window: SampleWindow, state: torch.Tensor) -> tuple[NDArray[np.float32], torch.Tensor]:
        inputs = [torch.from_numpy(window.samples_bn), torch.from_numpy(window.valid_frames_b), state]
        log_probs_btv, state = self._forward.execute(inputs)
        # Copied, since the program reuses its output memory.
        return log_probs_btv.numpy().copy(), state.clone()


class ExecutorchFormat:
    """`export.formats.Format` of ExecuTorch programs for XNNPACK."""

    name, extra = "executorch", EXTRA
    packages: tuple[str, ...] = ("executorch", "torchao")
    float_file, int8_file = FLOAT_FILE, INT8_FILE
    tolerance = WAVE_TOLERANCE
    batch_sizes: tuple[int, ...] = (1,)

    def __init__(self, student: StreamingModel, units: Units, weights_sha256: str) -> None:
        layout = StateLayout(student)
        self._module = WaveStudent(student, layout, float_counter=True).eval()
        self.facts = {
            "kdasr_format": EXECUTORCH_FORMAT,
            **own_metadata(student, layout, units_hash=units.hash, weights_sha256=weights_sha256),
            "num_samples": str(self._module.num_samples),
        }
        self.run = {"kdasr": f"kdasr transcribe --model {FLOAT_FILE} --stream FILE.wav"}

    def write_float(self, path: Path) -> None:
        with self._lowering() as thread:
            thread.submit(lambda: self._lower(self._program, path, [_partitioner()])).result()

    def write_int8(self, path: Path, float_path: Path) -> None:
        """Weights of linear layers in 8 bits, with one scale per output channel; activations are
        quantised at run time."""
        with _quiet():
            xnnpack = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", EXTRA)
            quantizers = require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", EXTRA)
            pt2e = require("torchao.quantization.pt2e.quantize_pt2e", EXTRA)
        settings = quantizers.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
        quantizer = quantizers.XNNPACKQuantizer()
        quantizer.set_module_type(torch.nn.Linear, settings)
        # One for quantised products first, as in ExecuTorch's examples. One for all of them at once takes two
        # thirds of the time, but gives a Zipformer partitions that depend on one another in a circle.
        partitioners = [xnnpack.XnnpackDynamicallyQuantizedPartitioner(), _partitioner()]

        def quantise_and_lower() -> None:
            example = self._module.example(1)
            prepared = pt2e.prepare_pt2e(self._program.module(), quantizer)
            prepared(*example)
            self._lower(torch.export.export(pt2e.convert_pt2e(prepared), example), path, partitioners)

        with self._lowering() as thread:
            thread.submit(quantise_and_lower).result()

    def open(self, path: Path) -> ExecutorchModel:
        return ExecutorchModel(path)

    @functools.cached_property
    def _program(self) -> ExportedProgram:
        """The program that both files are made from: decomposed, and with nodes that depend on no input
        (positions, limits of weights; a fifteenth of all) folded if all engines compute them bit-exactly."""
        folding = require("executorch.exir.passes.constant_prop_pass", EXTRA)
        program = torch.export.export(self._module, self._module.example(1))
        decompositions = torch.export.default_decompositions()
        for kept in _partitioner().ops_to_not_decompose(program)[0]:
            decompositions.pop(kept, None)
        decomposed = program.run_decompositions(decompositions)
        folded: ExportedProgram = folding.constant_prop_pass(decomposed, _ROUNDED_ELSEWISE)
        return folded

    @contextlib.contextmanager
    def _lowering(self) -> Iterator[ThreadPoolExecutor]:
        """A thread for lowering graphs."""
        with _explained(self._module), _quiet(), light_graphs(), _short_stack() as thread:
            yield thread

    def _lower(self, program: ExportedProgram, path: Path, partitioners: list[Any]) -> None:
        exir = require("executorch.exir", EXTRA)
        facts = torch.frombuffer(bytearray(json.dumps(self.facts).encode()), dtype=torch.uint8)
        lowered = exir.to_edge_transform_and_lower(
            program,
            partitioner=partitioners,
            constant_methods={_FACTS_METHOD: facts},
            # Saves a tenth of the time; the result is compared with torch anyway.
            compile_config=exir.EdgeCompileConfig(_check_ir_validity=False),
        )
        path.write_bytes(lowered.to_executorch().buffer)


def _partitioner() -> Any:
    """XNNPACK's partitioner, for all precisions.

    It drops the filter of operations to keep whole if XNNPACK takes all of them. With a filter, ExecuTorch
    would decompose the already decomposed program twice more."""
    xnnpack = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", EXTRA)

    class Partitioner(xnnpack.XnnpackPartitioner):  # type: ignore[name-defined]
        def ops_to_not_decompose(self, ep: ExportedProgram) -> tuple[list[Any], Any]:
            kept, takes = super().ops_to_not_decompose(ep)
            all_taken = all(takes(node) for node in ep.graph.nodes if node.target in kept)
            return kept, None if all_taken else takes

    return Partitioner()


def _use_one_thread() -> None:
    """Use one thread, as on a device and in the other engines. XNNPACK uses every core by default, and
    the thread pool cannot be changed once a program is loaded."""
    pybindings = require("executorch.extension.pybindings.portable_lib", EXTRA)
    if pybindings._threadpool_get_thread_count() != 1:
        pybindings._unsafe_reset_threadpool(1)


@contextlib.contextmanager
def _explained(module: WaveStudent) -> Iterator[None]:
    """Turns exceptions of torch.export and ExecuTorch into an ExportError."""
    try:
        yield
    except (AssertionError, RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise ExportError(
            "this student cannot be exported to ExecuTorch",
            where=type(module.student).__name__,
            got=(str(error).strip() or type(error).__name__).splitlines()[0][:300],
            fix="Use operations that torch.export and XNNPACK support in forward().",
        ) from error


@contextlib.contextmanager
def _short_stack() -> Iterator[ThreadPoolExecutor]:
    """A thread for lowering a graph, with garbage collection off meanwhile. torch.fx records the
    caller's whole stack for every node of every pass, which takes most of the time if the call stack is
    deep; and its graphs are millions of objects, which the collector would traverse again and again for a
    seventh of the time (without it, 0.3 to 0.5 GiB more memory is used)."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with ThreadPoolExecutor(1) as thread:
            yield thread
    finally:
        if collects:
            gc.enable()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the tool chain's messages off the terminal: warnings, logs and the output of its C++ part
    to the standard streams."""
    logging.disable(logging.WARNING)
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
        logging.disable(logging.NOTSET)
