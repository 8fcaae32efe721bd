"""Checkpoints of ming024/FastSpeech2, renamed to ours."""

from torch import Tensor

from vitalk.nn.checkpoints import joined, renamed

RENAMES = (
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


def from_ming024(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ming024/FastSpeech2 (the "model" entry of its files) for ``fastspeech2_ming``.

    Names with or without ``module.``. Position tables are left out, they are computed here; the edges of pitch and
    energy bins are taken where the file has them.
    """
    named = {key.removeprefix("module."): value for key, value in state.items() if not key.endswith(".position_enc")}
    ours = {renamed(name, RENAMES): value for name, value in named.items()}
    return joined(ours, r"\.slf_attn\.w_([qkv])s\.", ".attn.qkv.", "qkv")
