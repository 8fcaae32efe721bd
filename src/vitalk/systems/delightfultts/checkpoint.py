"""Checkpoints of dunky11/voicesmith and of coqui's TTS, renamed to ours."""

import re

from torch import Tensor

from vitalk.nn.checkpoints import renamed

RENAMES = (
    # the Conformers
    (r"\blayer_stack\.", "blocks."),
    (r"\.conditioning\.conv\.", ".condition."),
    (r"\.conditioning\.embedding_proj\.", ".condition.proj."),
    (r"\.ff\.ln\.", ".parts.feed1.norm."),
    (r"\.ff\.conv_(\d)\.", r".parts.feed1.conv\1."),
    (r"\.conformer_conv_(\d)\.", r".parts.conv\1."),
    (r"(\.parts\.conv\d)\.ln_(\d)\.", r"\1.norm\2."),
    (r"(\.parts\.conv\d)\.conv_1\.conv\.", r"\1.expand."),
    (r"(\.parts\.conv\d)\.conv_2\.conv\.", r"\1.reduce."),
    (r"(\.parts\.conv\d)\.depthwise\.conv\.", r"\1.depthwise."),
    (r"(blocks\.\d+)\.ln\.", r"\1.parts.attn.norm."),
    (r"\.slf_attn\.attention\.", ".parts.attn.attn."),
    (r"\battention\.attention\.", "attention."),
    (r"\b(query|key|value|out)_proj\.", r"\1."),
    (r"\bpos_proj\.", "place."),
    (r"\bu_bias$", "content_bias"),
    (r"\bv_bias$", "place_bias"),
    # prosody
    (r"^(utterance|phoneme)_prosody_encoder\.", r"prosody.\1.reference."),
    (r"^(utterance|phoneme)_prosody_predictor\.", r"prosody.\1.predictor."),
    (r"^u_bottle_out\.", "prosody.utterance.out."),
    (r"^p_bottle_out\.", "prosody.phoneme.out."),
    (r"\bconvs\.0\.conv\.", "convs.0."),
    (r"\bencoder_prj\.", "proj."),
    (r"\bencoder_bottleneck\.", "out."),
    (r"\bstl\.embed$", "tokens.embed"),
    (r"\bstl\.attention\.W_(query|key|value)\.", r"tokens.\1."),
    # predictors
    (r"\blayers\.([04])\.conv\.(\w+)\.", lambda found: f"{found[2]}.{int(found[1]) // 4}."),
    (r"\blayers\.([26])\.", lambda found: f"norms.{int(found[1]) // 4}."),
    (r"\b(predictor_bottleneck|linear_layer)\.", "linear."),
    (r"^(pitch|energy)_adaptor\.\1_predictor\.", r"\1.predictor."),
    (r"^(pitch|energy)_adaptor\.\1_emb\.", r"\1.embedding.conv."),
    (r"^pitch_adaptor\.pitch_embedding\.embeddings$", "pitch.embedding.table.weight"),
    (r"^pitch_adaptor\.pitch_bins$", "pitch.embedding.edges"),
    (r"^(length_regulator\.)?duration_predictor\.", "duration."),
    # the rest
    (r"^aligner\.(key|query)_layer\.", r"aligner.\1."),
    (r"^src_word_emb\.embeddings$", "symbols.weight"),
    (r"^(speaker_embed|emb_g\.weight)$", "speakers.weight"),
    (r"^lang_embed$", "languages.weight"),
    (r"^to_mel\.", "head."),
)
LEFT_OUT = re.compile(
    r"\.conditioning\.sqrt$|padding_mult$|^energy_scaler\.|^(waveform_decoder|disc)\.|^(pitch|energy)_(mean|std)$"
)


def checkpoint_filter_fn(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of voicesmith's or coqui's acoustic model, or of one of its parts, for ours of the same sizes.

    Whole checkpoints of coqui (keys ``acoustic_model.``, ``waveform_decoder.``) give their acoustic model. Tables
    that are computed here, statistics and weights that no pass uses (the plain half of coordinate convolutions, gates
    without a speaker) are left out; the embedding of padding becomes the zeros it stands for. Spreads are no part of
    the files: load with ``strict=False``.
    """
    state = {key.removeprefix("module.").removeprefix("acoustic_model."): value for key, value in state.items()}
    unused = {key.rpartition("conv.")[0] + key.rpartition(".")[2] for key in state if "convs.0.conv." in key}
    silent = {key.partition("embedding_proj.")[0] for key, value in state.items()
              if key.endswith(".embedding_proj.weight") and not value.shape[1]}  # fmt: skip
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in unused or LEFT_OUT.search(key) or any(key.startswith(prefix) for prefix in silent):
            continue
        if key == "src_word_emb.embeddings" and "src_word_emb.padding_mult" in state:
            value = value * state["src_word_emb.padding_mult"]
        out[renamed(key, RENAMES)] = value
    return out
