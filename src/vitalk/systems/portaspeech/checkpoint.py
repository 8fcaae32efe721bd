"""Checkpoints of NATSpeech/NATSpeech, renamed to ours."""

import re

from torch import Tensor

from vitalk.nn.checkpoints import joined, renamed

RENAMES = (
    (r"^encoder\.emb\.", "linguistic.symbols."),
    (r"^(?:encoder|ph2word_encoder)\.encoder\.last_ln\.", "linguistic.words.norm."),
    (r"^encoder\.(pre|encoder)\.", r"linguistic.encoder.\1."),
    (r"^ph2word_encoder\.(pre|encoder)\.", r"linguistic.words.\1."),
    (r"\.pre\.conv_layers\.", ".prenet.convs."),
    (r"\.pre\.norm_layers\.", ".prenet.norms."),
    (r"\.pre\.proj\.", ".prenet.proj."),
    (r"\.encoder\.attn_layers\.(\d+)\.emb_rel_k$", r".blocks.\1.attn.keys"),
    (r"\.encoder\.attn_layers\.(\d+)\.emb_rel_v$", r".blocks.\1.attn.values"),
    (r"\.encoder\.attn_layers\.(\d+)\.conv_o\.", r".blocks.\1.attn.proj."),
    (r"\.encoder\.attn_layers\.(\d+)\.conv_([qkv])\.", r".blocks.\1.attn.qkv.\2."),
    (r"\.encoder\.norm_layers_([12])\.(\d+)\.", r".blocks.\2.norm\1."),
    (r"\.encoder\.ffn_layers\.(\d+)\.conv_([12])\.", r".blocks.\1.ffn.conv\2."),
    (r"^dur_predictor\.conv\.(\d+)\.0\.", r"linguistic.duration.convs.\1."),
    (r"^dur_predictor\.conv\.(\d+)\.2\.", r"linguistic.duration.norms.\1."),
    (r"^dur_predictor\.linear\.0\.", "linguistic.duration.linear."),
    (r"^enc_pos_proj\.", "linguistic.attention.symbols."),
    (r"^dec_query_proj\.", "linguistic.attention.query."),
    (r"^dec_res_proj\.", "linguistic.attention.residual."),
    (r"^word_pos_proj\.", "linguistic.attention.place."),
    (r"^attn\.in_proj_weight$", "linguistic.attention.qkv.weight"),
    (r"^attn\.out_proj\.", "linguistic.attention.proj."),
    (r"^spk_id_proj\.", "linguistic.speakers."),
    (r"^fvae\.g_pre_net\.0\.", "generator.condition."),
    (r"^fvae\.encoder\.pre_net\.0\.", "generator.enter."),
    (r"^fvae\.encoder\.nn\.", "generator.encoder."),
    (r"^fvae\.encoder\.out_proj\.", "generator.posterior."),
    (r"^fvae\.decoder\.pre_net\.0\.", "generator.expand."),
    (r"^fvae\.decoder\.nn\.", "generator.decoder."),
    (r"^fvae\.decoder\.out_proj\.", "generator.head."),
    (r"^fvae\.prior_flow\.flows\.(\d+)\.", lambda found: f"generator.prior.steps.{int(found[1]) // 2}."),
    (r"^(generator\.prior\.steps\.\d+)\.pre\.", r"\1.start."),
    (r"^(generator\.prior\.steps\.\d+)\.enc\.", r"\1.stack."),
    (r"^(generator\.prior\.steps\.\d+)\.post\.", r"\1.end."),
    (r"^post_flow\.flows\.(\d+)\.",
     lambda found: f"postnet.steps.{int(found[1]) // 3}.{('norm', 'mix', 'coupling')[int(found[1]) % 3]}."),
    (r"^(postnet\.steps\.\d+\.coupling)\.wn\.", r"\1.stack."),
    (r"\.mix\.p$", ".mix.permutation"), (r"\.mix\.sign_s$", ".mix.signs"), (r"\.mix\.l$", ".mix.lower"),
    (r"\.mix\.log_s$", ".mix.log_diagonal"), (r"\.mix\.u$", ".mix.upper"), (r"\.norm\.logs$", ".norm.log_scale"),
    (r"\.gamma$", ".weight"), (r"\.beta$", ".bias"),
    (r"\.weight_g$", ".parametrizations.weight.original0"), (r"\.weight_v$", ".parametrizations.weight.original1"),
)  # fmt: skip
CONSTANT = re.compile(r"\.mix\.(l_mask|eye)$")
FLAT = re.compile(r"\.(prenet\.proj|attn\.proj|attn\.qkv)\.")  # 1x1 convolutions there, linear layers here
LAYER = re.compile(r"^(.*)\.(in_layers|res_skip_layers|cond_layer)(?:\.(\d+))?\.(.*)$")


def from_natspeech(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of NATSpeech's ``PortaSpeechFlow`` for ``PortaSpeech`` of the same sizes.

    Names with or without ``model.``. Those are the sizes of the paper (its ps_flow_nips2021 and
    ps_flow_small_nips2021); the release's later model has convolutional stacks and a dictionary of words.
    """
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name = renamed(key.removeprefix("model."), RENAMES)
        if CONSTANT.search(name):
            continue
        if FLAT.search(name) and value.ndim == 3:
            value = value[..., 0]
        elif name.endswith((".attn.keys", ".attn.values")):
            value = value[0]
        out[name] = value
    return _apart(joined(out, r"\.qkv\.([qkv])\.", ".qkv.", "qkv"))


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """WaveNets whose layers of the condition, and whose residual and skip, are one each -> layers of their own."""
    layers: dict[str, int] = {}
    for name in state:
        if (found := LAYER.match(name)) and found[2] == "in_layers":
            layers[found[1]] = max(layers.get(found[1], 0), int(found[3]) + 1)
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        found = LAYER.match(name)
        if found is None:
            out[name] = value
            continue
        stack, kind, number, what = found.groups()
        if kind == "in_layers":
            out[f"{stack}.layers.{number}.conv.{what}"] = value
        elif kind == "cond_layer":
            for i, part in enumerate(value.chunk(layers[stack])):
                out[f"{stack}.layers.{i}.condition.{what}"] = part
        elif int(number) == layers[stack] - 1:  # nothing goes on from the last
            out[f"{stack}.layers.{number}.skip.{what}"] = value
        else:
            for way, part in zip(("residual", "skip"), value.chunk(2), strict=True):
                out[f"{stack}.layers.{number}.{way}.{what}"] = part
    return out
