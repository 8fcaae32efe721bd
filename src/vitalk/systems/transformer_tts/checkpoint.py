"""Checkpoints of soobinseo/Transformer-TTS, renamed to ours."""

from torch import Tensor

from vitalk.nn.checkpoints import joined, renamed

RENAMES = (
    (r"^encoder\.alpha$", "text_positions.alpha"),
    (r"^decoder\.alpha$", "positions.alpha"),
    (r"\.(linear_layer|conv)\.(weight|bias)$", r".\2"),
    (r"^encoder\.encoder_prenet\.embed\.", "text.symbols."),
    (r"^encoder\.encoder_prenet\.conv(\d)\.", lambda found: f"text.convs.{int(found[1]) - 1}."),
    (r"^encoder\.encoder_prenet\.batch_norm(\d)\.", lambda found: f"text.norms.{int(found[1]) - 1}."),
    (r"^encoder\.encoder_prenet\.projection\.", "text.linear."),
    (r"^decoder\.decoder_prenet\.layer\.fc(\d)\.", lambda found: f"prenet.layers.{int(found[1]) - 1}."),
    (r"^decoder\.norm\.", "prenet.linear."),
    (r"^decoder\.mel_linear\.", "head."),
    (r"^decoder\.stop_linear\.", "stop."),
    (r"^decoder\.postconvnet\.conv1\.", "postnet.convs.0."),
    (r"^decoder\.postconvnet\.conv_list\.(\d)\.", lambda found: f"postnet.convs.{int(found[1]) + 1}."),
    (r"^decoder\.postconvnet\.conv2\.", "postnet.convs.4."),
    (r"^decoder\.postconvnet\.pre_batchnorm\.", "postnet.norms.0."),
    (r"^decoder\.postconvnet\.batch_norm_list\.(\d)\.", lambda found: f"postnet.norms.{int(found[1]) + 1}."),
    (r"^encoder\.layers\.(\d+)\.layer_norm_1\.", r"encoder.\1.residuals.0.norm."),
    (r"^encoder\.layers\.(\d+)\.", r"encoder.\1.attn."),
    (r"^encoder\.ffns\.(\d+)\.layer_norm\.", r"encoder.\1.residuals.1.norm."),
    (r"^decoder\.selfattn_layers\.(\d+)\.layer_norm_1\.", r"decoder.\1.residuals.0.norm."),
    (r"^decoder\.selfattn_layers\.(\d+)\.", r"decoder.\1.attn."),
    (r"^decoder\.dotattn_layers\.(\d+)\.layer_norm_1\.", r"decoder.\1.residuals.1.norm."),
    (r"^decoder\.dotattn_layers\.(\d+)\.", r"decoder.\1.cross."),
    (r"^decoder\.ffns\.(\d+)\.layer_norm\.", r"decoder.\1.residuals.2.norm."),
    (r"^(encoder|decoder)\.ffns\.(\d+)\.w_(\d)\.", r"\1.\2.ffn.conv\3."),
    (r"\.(attn|cross)\.query\.", r".\1.q."),
    (r"\.(attn|cross)\.final_linear\.", r".\1.proj."),
)


def from_soobinseo(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of soobinseo/Transformer-TTS (the "model" entry of its files) for ``transformer_tts_soobinseo``.

    Names with or without ``module.``. Position tables are left out, they are computed here. Counters of batch norms
    are taken where the file has them.
    """
    named = {key.removeprefix("module."): value for key, value in state.items() if not key.endswith(".pos_emb.weight")}
    ours = {renamed(name, RENAMES): value for name, value in named.items()}
    return joined(ours, r"\.(attn|cross)\.(key|value)\.", r".\1.kv.", ("key", "value"))
