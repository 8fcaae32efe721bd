"""Checkpoints of ming024/FastSpeech2, renamed to ours."""

import re

import torch
from torch import Tensor

RENAMES = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"^encoder\.src_word_emb\.", "symbols."),
        (r"^(encoder|decoder)\.layer_stack\.", r"\1.blocks."),
        (r"\.slf_attn\.layer_norm\.", ".norm1."),
        (r"\.slf_attn\.fc\.", ".attn.proj."),
        (r"\.pos_ffn\.layer_norm\.", ".norm2."),
        (r"\.pos_ffn\.w_(\d)\.", r".ffn.conv\1."),
        (r"^variance_adaptor\.duration_predictor\.", "duration."),
        (r"^variance_adaptor\.(pitch|energy)_predictor\.", r"\1.predictor."),
        (r"^variance_adaptor\.(pitch|energy)_bins$", r"\1.embedding.edges"),
        (r"^variance_adaptor\.(pitch|energy)_embedding\.", r"\1.embedding.table."),
        (r"\.conv_layer\.conv1d_(\d)\.conv\.", lambda found: f".convs.{int(found[1]) - 1}."),
        (r"\.conv_layer\.layer_norm_(\d)\.", lambda found: f".norms.{int(found[1]) - 1}."),
        (r"\.linear_layer\.", ".linear."),
        (r"^mel_linear\.", "head."),
        (r"^postnet\.convolutions\.(\d+)\.0\.conv\.", r"postnet.convs.\1."),
        (r"^postnet\.convolutions\.(\d+)\.1\.", r"postnet.norms.\1."),
        (r"^speaker_emb\.", "speakers."),
    )
)
PART = re.compile(r"\.slf_attn\.w_([qkv])s\.")


def from_ming024(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ming024/FastSpeech2 (the "model" entry of its files) for ``fastspeech2_ming``.

    Names with or without ``module.``. Position tables are left out, they are computed here; the edges of pitch and
    energy bins are taken where the file has them.
    """
    out: dict[str, Tensor] = {}
    joint: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        if name.endswith(".position_enc"):
            continue
        part = PART.search(name)
        for pattern, replacement in RENAMES:
            name = pattern.sub(replacement, name)
        if part:
            joint.setdefault(PART.sub(".attn.qkv.", name), {})[part[1]] = value
        else:
            out[name] = value
    return out | {name: torch.cat([parts[letter] for letter in "qkv"]) for name, parts in joint.items()}
