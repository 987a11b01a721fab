"""Tiny models with random weights, saved by the very libraries that they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from kdasr.compat import import_torchaudio

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
_CONVOLUTIONS = [(24, 10, 5), (24, 8, 4), (24, 4, 4), (24, 4, 4)]


def noise(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 16_000))).astype(np.float32)


def torchaudio_model(
    folder: Path, kind: str = "wav2vec2_model", norm: str = "layer_norm"
) -> tuple[Path, Any]:
    """The architecture file of a saved network, and the network."""
    torch.manual_seed(0)
    parameters: dict[str, Any] = {
        "extractor_mode": norm,
        "extractor_conv_layer_config": _CONVOLUTIONS,
        "extractor_conv_bias": False,
        "encoder_embed_dim": 32,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 16,
        "encoder_pos_conv_groups": 4,
        "encoder_num_layers": 2,
        "encoder_num_heads": 4,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": 48,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": norm == "layer_norm",
        "encoder_layer_drop": 0.0,
        "aux_num_out": 29,
    }
    if kind == "wavlm_model":
        parameters |= {"encoder_num_buckets": 16, "encoder_max_distance": 40}
    network = getattr(import_torchaudio().models, kind)(**parameters).eval()
    card = {"model": kind, "parameters": parameters, "labels": ["-", *LETTERS[4:5], *LETTERS[5:]]}
    card["labels"] = card["labels"][:29]
    card["normalize_waveform"] = norm == "layer_norm"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(card))
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(state, folder / "model.safetensors")
    return folder / "model.json", network


def hugging_face_model(folder: Path, kind: str = "Wav2Vec2", norm: str = "layer", **further: Any) -> Any:
    """A `…ForCTC` saved to `folder` with its feature extractor and tokenizer."""
    import transformers

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        "vocab_size": len(LETTERS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "pad_token_id": 0,
        "hidden_dropout": 0.0,
        **further,
    }
    if kind != "Wav2Vec2Bert":
        sizes |= {
            "conv_dim": [size for size, _, _ in _CONVOLUTIONS],
            "conv_kernel": [kernel for _, kernel, _ in _CONVOLUTIONS],
            "conv_stride": [stride for _, _, stride in _CONVOLUTIONS],
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "feat_extract_norm": norm,
            "do_stable_layer_norm": norm == "layer",
        }
    config = getattr(transformers, f"{kind}Config")(**sizes)
    network = getattr(transformers, f"{kind}ForCTC")(config).eval()
    network.save_pretrained(folder)
    if kind == "Wav2Vec2Bert":
        extractor: Any = transformers.SeamlessM4TFeatureExtractor()
    else:
        extractor = transformers.Wav2Vec2FeatureExtractor(
            do_normalize=True, return_attention_mask=norm == "layer"
        )
    extractor.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({symbol: unit for unit, symbol in enumerate(LETTERS)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), word_delimiter_token="|")
    tokenizer.save_pretrained(folder)
    return network, extractor


def whisper_model(folder: Path, max_target_positions: int = 64) -> Any:
    """A multilingual Whisper saved to `folder`, with a byte vocabulary of printable characters."""
    import transformers

    torch.manual_seed(0)
    special = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        "<|en|>",
        "<|de|>",
        "<|translate|>",
        "<|transcribe|>",
    ]
    special += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    pieces = [*"abcdefghijklmnopqrstuvwxyz'0123456789%^é", "Ġ", "Ġa", "Ġb", "Ġ1", "20", *special]
    tokenizer = transformers.WhisperTokenizer(
        vocab={piece: unit for unit, piece in enumerate(pieces)},
        merges=[("Ġ", "a"), ("Ġ", "b"), ("Ġ", "1"), ("2", "0")],
    )
    tokenizer.add_tokens(special, special_tokens=True)
    ids = {piece: tokenizer.convert_tokens_to_ids(piece) for piece in special}
    end = ids["<|endoftext|>"]
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_target_positions=max_target_positions,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
    )
    network = transformers.WhisperForConditionalGeneration(config).eval()
    # Random weights say one token for ever; larger ones say more.
    torch.nn.init.normal_(network.model.encoder.conv1.weight, std=0.3)
    for name, parameter in network.model.decoder.named_parameters():
        if name.endswith("weight") and parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.6)
    how = network.generation_config
    how._from_model_config = False
    how.update(
        begin_suppress_tokens=[end],
        suppress_tokens=[unit for piece, unit in ids.items() if unit != end],
        max_length=20,
    )
    for name, value in {
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": ids["<|en|>"], "<|de|>": ids["<|de|>"]},
        "task_to_id": {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        "no_timestamps_token_id": ids["<|notimestamps|>"],
    }.items():
        setattr(how, name, value)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    return network
