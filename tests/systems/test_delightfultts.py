"""DelightfulTTS against coqui's reimplementation, and the invariants of its blocks, prosody and losses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.parity import parity
from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import length_mask, masked
from vitalk.speech.audio import Audio
from vitalk.systems.delightfultts import (
    Blocks,
    Conformer,
    ConformerBlock,
    DelightfulTTS,
    PhonemeProsody,
    Predictor,
    Reference,
    Spread,
    Targets,
    UtteranceProsody,
    attention,
    checkpoint_filter_fn,
    delightfultts,
    delightfultts_coqui,
    delightfultts_multilingual,
    delightfultts_small,
    delightfultts_voicesmith,
    reference_mel,
)
from vitalk.systems.delightfultts.attention import RelativeAttention, TimedAttention, sinusoids, wrapped_index
from vitalk.systems.delightfultts.conformer import TimeNorm
from vitalk.systems.delightfultts.prosody import SeparablePredictor, unit

FOLDER = Path(__file__).parents[1] / "parity"
SIZE = {"depth": 2, "heads": 2, "kernel": 3, "feed_kernel": 3}
SMALL = Reference((8, 8, 12), (1, 2, 2), gru=8)
TINY = {"dim": 16, "mels": 5, "encoder": SIZE, "decoder": SIZE, "reference": SMALL, "utterance_dim": 6, "tokens": 4}
GATES = {"conditioning": "gate", "speaker_dim": 6, "language_dim": 3, "speakers": 3, "languages": 2}
OLD = {"order": "voicesmith", "activation": "leaky", "norm": "time", "positions": "wrapped"}
LENGTHS = torch.tensor([7, 4])
KINDS = {
    "paper": {},
    "frame pitch": {"pitch": "frame", "embedding": "curve", "between": False},
    "voicesmith": {"encoder": {**SIZE, **OLD}, "decoder": {**SIZE, **OLD}, "wrapped": True, "chained": False,
                   "reference": replace(SMALL, norm="time"), "predictor": Predictor("separable"), **GATES},
    "energy": {"energy": True, "energy_spread": Spread(2.0, 1.0, 0.0, 9.0), "unit_speaker": True, **GATES},
    "absolute": {"encoder": {**SIZE, "positions": "absolute", "order": "attention", "activation": "swish"}},
    "one level": {"prosody": ("phoneme",)},
    "no prosody": {"prosody": ()},
}  # fmt: skip


def tiny(**options):
    torch.manual_seed(0)
    model = DelightfulTTS(12, **{**TINY, **options}).eval()
    nn.init.constant_(model.duration.linear.bias, 1.3)  # untrained, it would hardly speak
    return model


def told(model, seed=0):
    """Two items with everything that a teacher tells."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 12, (2, 7), generator=draw)
    durations = torch.randint(1, 5, (2, 7), generator=draw) * length_mask(LENGTHS, 7)
    frames = durations.sum(1)
    mel = torch.randn(2, 5, int(frames.max()), generator=draw)
    time = 7 if model.pitch_level == "phoneme" else mel.shape[2]
    found = {"ids": ids, "text_lengths": LENGTHS, "durations": durations, "reference": mel,
             "reference_lengths": frames, "pitch": 100 + 200 * torch.rand(2, time, generator=draw)}  # fmt: skip
    if model.energy is not None:
        found["energy"] = 5 * torch.rand(2, 7, generator=draw)
    return found | who(model)


def who(model, batch=2):
    tables = {"speaker": model.speakers, "language": model.languages}
    return {name: torch.arange(batch) for name, table in tables.items() if table is not None}


def targets(given):
    return Targets(given["reference"], given["durations"], given["pitch"], given.get("energy"))


# Sizes


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (delightfultts, 84_177_834),
        (delightfultts_voicesmith, 32_993_691),
        (delightfultts_multilingual, 123_692_250),
        (delightfultts_coqui, 111_950_715),
        (delightfultts_small, 5_216_730),
    ],
)
def test_sizes_are_those_counted(build, count):
    with torch.device("meta"):
        model = build(320)
    assert sum(p.numel() for p in model.parameters()) == count


# Parity with coqui's TTS, whose Conformer and prosody encoders are voicesmith's


def official(name):
    known = parity.load(FOLDER / f"delightfultts.{name}.json")
    state = {key: torch.from_numpy(value) for key, value in parity.filled_state(known).items()}
    given = {key: torch.from_numpy(parity.tensor(key, **spec)) for key, spec in known["inputs"].items()}
    return known, state, given


def part_of(state, prefix):
    return checkpoint_filter_fn({k.removeprefix(f"{prefix}."): v for k, v in state.items() if k.startswith(prefix)})


def first_item(record):
    """What a fixture records of the first item of two, which has no padding."""
    kept = np.asarray(record["index"]) < np.prod(record["shape"][1:])
    picked = {key: np.asarray(record[key])[kept].tolist() for key in ("index", "value")}
    return {**record, **picked, "shape": [1, *record["shape"][1:]]}


def spilled(block, x, mask, condition):
    """A block as it is there: padding is zeroed after attention alone, and counts in convolutions and norms."""
    x = block.condition(x, condition)
    for name, part in block.parts.items():
        x = x + part(x, mask if name == "attn" else None)
        x = masked(x, mask) if name == "attn" else x
    return x


@pytest.fixture
def whole(monkeypatch):
    """Places in attention count from the end of the padding, as they do there."""

    def of_the_batch(queries, sources, rows, columns):
        full = torch.full_like(queries, rows), torch.full_like(sources, columns)
        return wrapped_index(*full, rows, columns)

    monkeypatch.setattr(attention, "wrapped_index", of_the_batch)


@torch.inference_mode()
def test_conformer_agrees_with_coqui(whole):
    known, state, given = official("conformer_small")
    model = Conformer(48, Blocks(2, 4, 7, 3, **OLD), condition=12).eval()
    assert sum(p.numel() for p in model.parameters()) == known["params"]
    model.load_state_dict(checkpoint_filter_fn(state))
    mask, seen = length_mask(torch.tensor([13, 9]), 13), {}
    for name, part in (("feed_forward", "feed1"), ("conv_1", "conv1"), ("attention", "attn")):
        hook = lambda _, __, out, name=name: seen.setdefault(name, out)  # noqa: E731
        model.blocks[0].parts[part].register_forward_hook(hook)
    model.blocks[0].condition.register_forward_hook(lambda _, __, out: seen.setdefault("conditioned", out))
    x = given["x"]
    for i, block in enumerate(model.blocks):
        x = spilled(block, x, mask, given["speaker"])
        seen[f"block_{i}"] = seen["output"] = x
    for name, record in known["outputs"].items():
        assert parity.distance(seen[name].numpy(), record) < 1e-4, name
    # An item without padding gives there what it gives here, in whatever batch.
    alone = model(given["x"], mask, given["speaker"])[:1]
    assert parity.distance(alone.numpy(), first_item(known["outputs"]["output"])) < 1e-4


@torch.inference_mode()
def test_prosody_encoders_and_predictors_agree_with_coqui(whole, monkeypatch):
    known, state, given = official("prosody_encoders")
    sizes = Reference((24, 24, 32, 32), (1, 1, 2, 2), gru=16, norm="time")
    utterance = UtteranceProsody(20, 24, 12, 10, sizes).eval()
    phoneme = PhonemeProsody(20, 24, 4, 6, sizes, wrapped=True).eval()
    predictor, variance = SeparablePredictor(24, 24, 6, 5).eval(), SeparablePredictor(24, 32, 1, 3).eval()
    parts = {"utterance": utterance, "phoneme": phoneme, "predictor": predictor, "variance": variance}
    for name, part in parts.items():
        part.load_state_dict(part_of(state, name))
    unused = 2 * (24 * 20 * 3 + 24)  # the plain half of the coordinate convolutions
    assert sum(p.numel() for part in parts.values() for p in part.parameters()) == known["params"] - unused
    mel, x, mask = given["mel"], given["x"], length_mask(torch.tensor([12, 9]), 12)
    frames, some = length_mask(torch.tensor([40, 33]), 40), torch.ones(2, 12, dtype=torch.int64)
    out = {"variance": masked(variance(x), mask)[..., 0]}
    out["predicted"] = predictor.linear(masked(hidden_of(predictor, x), mask))
    assert parity.distance(out["variance"].numpy(), known["outputs"]["variance"]) < 1e-4
    assert parity.distance(out["predicted"].numpy(), known["outputs"]["predicted"]) < 1e-4
    found = {"reference": utterance.encoder(mel, frames)[0], "phoneme": phoneme(x, mask, mel, frames, some)}
    for name, value in found.items():
        assert parity.distance(value[:1].numpy(), first_item(known["outputs"][name])) < 1e-4, name
    spill(monkeypatch, utterance.encoder, frames)
    spill(monkeypatch, phoneme.encoder, frames)
    monkeypatch.setattr(utterance.tokens, "forward", lambda query: over_the_batch(utterance.tokens, query))
    found = {"reference": utterance.encoder(mel, frames)[0], "utterance": utterance(mel, frames)[:, None],
             "phoneme": phoneme(x, mask, mel, frames, some)}  # fmt: skip
    for name, value in found.items():
        assert parity.distance(value.numpy(), known["outputs"][name]) < 1e-4, name


def over_the_batch(tokens, query):
    """Their softmax of style tokens, which by a slip runs over the items of the batch, not over the tokens."""
    table = tokens.embed.tanh()
    scores = tokens.query(query) @ tokens.key(table).T * table.shape[1] ** -0.5
    return scores.softmax(0) @ tokens.value(table)


def hidden_of(predictor, x):
    """What the last layer of a predictor gets, padding and all."""
    seen = {}
    handle = predictor.linear.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    predictor(x)
    handle.remove()
    return seen["x"]


def spill(monkeypatch, encoder, frames):
    """Let padding run through the convolutions and norms of a reference encoder, zeroed in the mel and at the GRU."""
    plain = type(encoder).forward
    shorter = length_mask(torch.tensor([10, 9]), 10)

    def forward(mel, mask):
        gru = encoder.gru.forward
        encoder.gru.forward = lambda x: gru(masked(x, shorter))
        states = masked(plain(encoder, masked(mel.mT, frames).mT, None)[0], shorter)
        encoder.gru.forward = gru
        return states, states[torch.arange(2), torch.tensor([9, 8])], shorter

    monkeypatch.setattr(encoder, "forward", forward)


NAMED = {
    "coqui": (
        {**KINDS["voicesmith"], "energy": True, "embedding": "curve", "aligner": True, "languages": 0, "chained": True},
        "acoustic_model.",
    ),
    "voicesmith": ({**KINDS["voicesmith"], "prosody": ("utterance", "phoneme"), "between": False}, ""),
}


def official_names(name, state):
    """Our names as they are there, written out again the other way round."""
    import re

    back = [
        (r"\bblocks\.", "layer_stack."), (r"\.condition\.proj\.", ".conditioning.embedding_proj."),
        (r"\.condition\.", ".conditioning.conv."), (r"\.parts\.feed1\.norm\.", ".ff.ln."),
        (r"\.parts\.feed1\.conv(\d)", r".ff.conv_\1"), (r"\.parts\.conv(\d)\.norm(\d)", r".conformer_conv_\1.ln_\2"),
        (r"\.parts\.conv(\d)\.expand", r".conformer_conv_\1.conv_1.conv"),
        (r"\.parts\.conv(\d)\.reduce", r".conformer_conv_\1.conv_2.conv"),
        (r"\.parts\.conv(\d)\.depthwise", r".conformer_conv_\1.depthwise.conv"),
        (r"\.parts\.attn\.norm\.", ".ln."), (r"\.parts\.attn\.attn\.", ".slf_attn.attention."),
        (r"^(prosody\.phoneme\.reference)\.attention\.", r"\1.attention.attention."),
        (r"(attention)\.(query|key|value|out)\.", r"\1.\2_proj."), (r"\bplace\.weight", "pos_proj.weight"),
        (r"content_bias", "u_bias"), (r"place_bias", "v_bias"),
        (r"tokens\.embed", "stl.embed"), (r"tokens\.(query|key|value)", r"stl.attention.W_\1"),
        (r"^prosody\.(\w)\w+\.out\.", r"\1_bottle_out."),
        (r"reference\.proj\.", "reference.encoder_prj."), (r"reference\.out\.", "reference.encoder_bottleneck."),
        (r"convs\.0\.", "convs.0.conv."),
        (r"(pointwise|depthwise)\.([01])\.", lambda f: f"layers.{4 * int(f[2])}.conv.{f[1]}."),
        (r"predictor\.norms\.([01])\.", lambda f: f"predictor.layers.{4 * int(f[1]) + 2}."),
        (r"^duration\.norms\.([01])\.", lambda f: f"duration.layers.{4 * int(f[1]) + 2}."),
        (r"^(prosody.*)predictor\.linear\.", r"\1predictor.predictor_bottleneck."), (r"\blinear\.", "linear_layer."),
        (r"^prosody\.(\w+)\.reference\.", r"\1_prosody_encoder."),
        (r"^prosody\.(\w+)\.predictor\.", r"\1_prosody_predictor."),
        (r"^(pitch|energy)\.predictor\.", r"\1_adaptor.\1_predictor."),
        (r"^(pitch|energy)\.embedding\.conv\.", r"\1_adaptor.\1_emb."),
        (r"^pitch\.embedding\.table\.weight", "pitch_adaptor.pitch_embedding.embeddings"),
        (r"^pitch\.embedding\.edges", "pitch_adaptor.pitch_bins"),
        (r"^aligner\.(\w+)\.", r"aligner.\1_layer."), (r"^symbols\.weight", "src_word_emb.embeddings"),
        (r"^speakers\.weight", "emb_g.weight" if name == "coqui" else "speaker_embed"),
        (r"^languages\.weight", "lang_embed"), (r"^head\.", "to_mel."),
        (r"^duration\.", "duration_predictor." if name == "coqui" else "length_regulator.duration_predictor."),
    ]  # fmt: skip
    out = {}
    for key, value in state.items():
        for pattern, replacement in back:
            key = re.sub(pattern, replacement, key)
        out[key] = value
    return out


@pytest.mark.parametrize("name", NAMED)
def test_converts_whole_checkpoints(name):
    options, prefix = NAMED[name]
    model = tiny(**options, f0_spread=Spread(0.0, 1.0, -2.5, 3.5))
    ours = {k: v for k, v in model.state_dict().items() if ".scale." not in k}
    there = official_names(name, ours)
    assert not any(k.startswith(("prosody", "symbols", "speakers")) for k in there)
    there = {f"{prefix}{k}": v for k, v in there.items()}
    there[f"{prefix}src_word_emb.padding_mult"] = torch.tensor([[0.0]] + [[1.0]] * 11)
    there[f"{prefix}encoder.layer_stack.0.conditioning.sqrt"] = torch.tensor(0.7)
    there[f"{prefix}utterance_prosody_encoder.encoder.convs.0.weight"] = torch.zeros(8, 5, 3)
    there[f"{prefix}energy_scaler.running_mean"] = there["waveform_decoder.conv_pre.weight"] = torch.zeros(1)
    converted = checkpoint_filter_fn(there)
    assert set(converted) == set(ours)
    for key, value in ours.items():
        wanted = value * torch.tensor([[0.0]] + [[1.0]] * 11) if key == "symbols.weight" else value
        assert torch.equal(converted[key], wanted), key
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not unexpected and all(".scale." in key for key in missing)


def test_gates_without_a_speaker_are_left_out():
    state = {
        "encoder.layer_stack.0.conditioning.embedding_proj.weight": torch.zeros(4, 0),
        "encoder.layer_stack.0.conditioning.embedding_proj.bias": torch.zeros(4),
        "encoder.layer_stack.0.conditioning.conv.pointwise.weight": torch.zeros(8, 4, 1),
        "encoder.layer_stack.0.ln.bias": torch.zeros(4),
    }
    assert set(checkpoint_filter_fn(state)) == {"encoder.blocks.0.parts.attn.norm.bias"}


# The blocks


@torch.inference_mode()
@pytest.mark.parametrize("order", ["conv", "attention", "voicesmith", "voicesmith-slim"])
@pytest.mark.parametrize("positions", ["relative", "absolute", "wrapped"])
@pytest.mark.parametrize("norm", ["channels", "time"])
def test_a_block_keeps_its_shape_and_hears_no_padding(order, positions, norm):
    torch.manual_seed(0)
    sizes = Blocks(2, 2, 5, 3, order=order, positions=positions, norm=norm)
    model, x, vector = Conformer(12, sizes, condition=3).eval(), torch.randn(2, 9, 12), torch.randn(2, 3)
    together = model(x, length_mask(torch.tensor([9, 5]), 9), vector)
    assert together.shape == x.shape and not together[1, 5:].any()
    for i, length in enumerate((9, 5)):
        alone = model(x[i : i + 1, :length], None, vector[i : i + 1])
        torch.testing.assert_close(together[i, :length], alone[0], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_block_without_positions_and_neighbours_does_not_care_for_order():
    block = ConformerBlock(12, Blocks(1, 2, 1, 1, positions="absolute")).eval()  # positions are the stack's to add
    x, order = torch.randn(1, 8, 12), torch.randperm(8)
    torch.testing.assert_close(block(x)[:, order], block(x[:, order]), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
@given(st.integers(1, 9), st.integers(0, 50))
@settings(max_examples=10, deadline=None)
def test_relative_scores_are_those_of_the_distance(time, seed):
    torch.manual_seed(seed)
    model = RelativeAttention(8, 2)
    toward = torch.randn(1, 2, time, 4)
    got = model._relative(toward)
    distance = torch.arange(time)[:, None] - torch.arange(time)
    keys = model.place(sinusoids(distance, 8)).unflatten(-1, (2, 4))  # [time, time, heads, head_dim]
    torch.testing.assert_close(got, torch.einsum("bhid,ijhd->bhij", toward, keys), atol=1e-5, rtol=1e-4)


@given(st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_wrapped_scores_are_shifted_as_a_picture_is(rows, columns):
    scores = torch.arange(1, rows * columns + 1).float().view(rows, columns)
    shifted = nn.functional.pad(scores, (1, 0)).view(columns + 1, rows)[1:].reshape(rows, columns)
    index, empty = wrapped_index(torch.tensor([rows]), torch.tensor([columns]), rows, columns)
    assert torch.equal(scores.flatten()[index[0]].masked_fill(empty[0], 0), shifted)


def test_norm_over_time_is_torchs_where_nothing_is_padded():
    x, mask = torch.randn(2, 6, 9), torch.ones(2, 9, dtype=torch.bool)
    torch.testing.assert_close(TimeNorm(6)(x, mask), nn.GroupNorm(1, 6)(x))
    torch.testing.assert_close(TimeNorm(6, each=True)(x, mask), nn.InstanceNorm1d(6, affine=True)(x))


@torch.inference_mode()
def test_phonemes_look_at_their_own_time_from_the_first_step_on():
    torch.manual_seed(0)
    model = TimedAttention(32, 1)
    times = torch.tensor([[10.0, 30.0, 50.0]])
    frames = torch.arange(0, 60, 4).float()
    source = torch.eye(15, 32)[None] * 1e-3  # the frames can be told apart, but hardly weigh
    model.value.load_state_dict({"weight": 1e3 * torch.eye(32), "bias": torch.zeros(32)})
    model.out.load_state_dict({"weight": torch.eye(32), "bias": torch.zeros(32)})
    weights = model(torch.zeros(1, 3, 32), times, source, frames)[0, :, :15]
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert (frames[weights.argmax(1)] - times[0]).abs().max() <= 4


# The model


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher", [True, False])
def test_padding_changes_nothing(kind, teacher):
    model = tiny(**KINDS[kind])
    given = told(model)
    if not teacher:
        given = {"ids": given["ids"], "text_lengths": LENGTHS} | who(model)
    together = model(**given)
    for i, length in enumerate(LENGTHS.tolist()):
        frames = int(together.mel_lengths[i])
        cut = {"ids": length, "durations": length, "energy": length, "reference": frames}
        cut["pitch"] = length if model.pitch_level == "phoneme" else frames
        one = {name: value[i : i + 1] for name, value in given.items() if not name.endswith("_lengths")}
        one = {name: value[..., : cut[name]] if name in cut else value for name, value in one.items()}
        alone = model(**one)
        assert alone.mel.shape[2] == frames == int(alone.mel_lengths)
        torch.testing.assert_close(together.mel[i, :, :frames], alone.mel[0], atol=3e-5, rtol=1e-3)
        assert not together.mel[i, :, frames:].any()
        torch.testing.assert_close(together.log_durations[i, :length], alone.log_durations[0], atol=3e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_leave_padding_out_and_reach_every_weight(kind):
    model = tiny(**KINDS[kind]).train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    given = told(model)
    out, wanted = model(**given), targets(given)
    losses = model.losses(out, wanted)
    names = {"mel", "ssim", "duration", "pitch"} | set(model.prosody)
    names |= {"between"} if len(model.between) else set()
    assert set(losses) == names | ({"energy"} if model.energy is not None else set())
    spoilt = replace(wanted, mel=wanted.mel.masked_fill(~out.frame_mask[:, None], torch.nan))
    for name, value in model.losses(out, spoilt).items():
        torch.testing.assert_close(value, losses[name], msg=name)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    perfect = model.losses(replace(out, mel=wanted.mel), wanted)
    assert perfect["mel"] == 0 and abs(perfect["ssim"]) < 1e-5


def test_predictors_do_not_move_what_hears():
    model = tiny().train()
    given = told(model)
    losses = model.losses(model(**given), targets(given))
    (losses["utterance"] + losses["phoneme"]).backward()
    for level in model.prosody.values():
        assert all(p.grad is None or not p.grad.any() for p in level.reference.parameters())
        assert all(p.grad.abs().sum() > 0 for p in level.predictor.parameters())


@torch.inference_mode()
def test_heard_and_predicted_prosody_have_one_form():
    model = tiny()
    given = told(model)
    heard = model(**given)
    free = model(**{**given, "reference": None, "reference_lengths": None})
    assert [tuple(v.shape) for v in heard.prosody["utterance"]] == [(2, 6)] * 2
    assert [tuple(v.shape) for v in heard.prosody["phoneme"]] == [(2, 7, 4)] * 2
    assert free.prosody["utterance"][0] is None and free.mel.shape == heard.mel.shape
    assert not torch.allclose(free.mel, heard.mel)
    mixed = model(**given, predicted=torch.tensor([True, False]))
    torch.testing.assert_close(mixed.mel[0], free.mel[0])
    torch.testing.assert_close(mixed.mel[1], heard.mel[1])
    other = model(given["ids"], LENGTHS, reference=given["reference"])  # of another text: no phonemes are heard
    assert other.prosody["utterance"][0] is not None and other.prosody["phoneme"][0] is None


def test_prosody_vectors_are_measured_in_one_unit():
    vectors = unit(3 + 5 * torch.randn(3, 7, 4))
    torch.testing.assert_close(vectors.mean(-1), torch.zeros(3, 7), atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors.std(-1, unbiased=False), torch.ones(3, 7), atol=1e-3, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["paper", "energy", "frame pitch"])
def test_factors_act_on_their_own_quantity(kind):
    model = tiny(**KINDS[kind])
    ids, more = torch.randint(1, 12, (2, 7)), who(model)
    plain, higher, louder = (
        model(ids, **more),
        model(ids, pitch_factor=1.2, **more),
        model(ids, energy_factor=2.0, **more),
    )
    torch.testing.assert_close(higher.pitch, 1.2 * plain.pitch)
    assert not torch.equal(plain.mel, higher.mel) and torch.equal(plain.pitch, louder.pitch)
    if model.energy is None:
        shift = (louder.mel - plain.mel)[plain.frame_mask[:, None].expand_as(plain.mel)]
        torch.testing.assert_close(shift, torch.full_like(shift, np.log(2)))
    else:
        torch.testing.assert_close(louder.energy, 2 * plain.energy)
    durations = torch.full((2, 7), 2)
    assert model(ids, None, durations, speed=0.5, **more).mel.shape[2] == 28


@torch.inference_mode()
@pytest.mark.parametrize("conditioning", ["add", "gate"])
def test_speakers_and_languages_are_heard(conditioning):
    model, ids = tiny(**{**GATES, "conditioning": conditioning}), torch.randint(1, 12, (1, 7))
    durations = torch.full((1, 7), 2)
    numbers = [torch.tensor([n]) for n in range(3)]
    say = lambda s, l: model(ids, None, durations, speaker=numbers[s], language=numbers[l]).mel  # noqa: E731, E741
    assert not torch.allclose(say(0, 0), say(1, 0)) and not torch.allclose(say(0, 0), say(0, 1))


def test_trains_and_speaks_in_half_precision():
    for kind in ("paper", "voicesmith"):
        model = tiny(**KINDS[kind]).train()
        given = told(model)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.losses(model(**given), targets(given))
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            assert model.eval()(given["ids"], **who(model)).mel.isfinite().all()


def test_learns_to_say_one_sentence():
    model = tiny().train()
    given = told(model)
    optimiser, first = torch.optim.Adam(model.parameters(), 3e-3), None
    for _ in range(60):
        losses = model.losses(model(**given), targets(given))
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
        first = first or {name: value.item() for name, value in losses.items()}
    assert losses["mel"] < 0.8 * first["mel"] and losses["phoneme"] < first["phoneme"]
    assert losses["duration"] < 0.5 * first["duration"] and losses["ssim"] < first["ssim"]


class OneVoice(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, speed):
        return self.model(ids, speed=speed).mel


@torch.inference_mode()
def test_voicesmiths_attention_exports_with_text_of_any_length():
    import onnxruntime as ort

    options = {**KINDS["voicesmith"], "conditioning": "add", "speakers": 0, "languages": 0}
    options |= {part: {**options.get(part, SIZE), "depth": 1} for part in ("encoder", "decoder")}
    module = OneVoice(tiny(**options))
    text = torch.export.Dim("text", min=2, max=400)
    program = torch.onnx.export(
        module, (torch.randint(1, 12, (1, 6)), torch.ones(1)), dynamo=True, verbose=False, opset_version=20,
        dynamic_shapes={"ids": {1: text}, "speed": None},
    )  # fmt: skip
    session = ort.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    for length, speed in ((3, 1.0), (30, 0.7)):
        ids, factor = torch.randint(1, 12, (1, length)), torch.tensor([speed])
        (got,) = session.run(None, dict(zip(names, (ids.numpy(), factor.numpy()), strict=True)))
        np.testing.assert_allclose(got, module(ids, factor).numpy(), atol=1e-4, rtol=1e-3)


# What is refused


def test_refuses_what_does_not_fit():
    model = tiny(speakers=2)
    ids, one = torch.ones(1, 4, dtype=torch.int64), torch.tensor([0])
    with pytest.raises(UserError, match="one symbol or more"):
        model(ids[:, :0], speaker=one)
    with pytest.raises(UserError, match="needs a speaker"):
        model(ids)
    with pytest.raises(UserError, match=r"no speaker \[2\]; numbers go from 0 to 1"):
        model(ids, speaker=torch.tensor([2]))
    with pytest.raises(UserError, match="knows no language"):
        model(ids, speaker=one, language=one)
    with pytest.raises(UserError, match="durations of shape"):
        model(ids, None, torch.ones(1, 3), speaker=one)
    with pytest.raises(UserError, match="pitch of shape"):
        model(ids, pitch=torch.ones(1, 3), speaker=one)
    out = model(ids, None, torch.full((1, 4), 2), speaker=one)
    with pytest.raises(UserError, match="crop it"):
        model.losses(out, Targets(torch.zeros(1, 5, 3), torch.ones(1, 4), torch.ones(1, 4)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"encoder": {"order": "first"}}, 'no order "first"; choose one of conv, attention'),
        ({"encoder": {"activation": "gelu"}}, 'no activation "gelu"'),
        ({"decoder": {"kernel": 4}}, "kernels of 4 and 3 frames have no centre"),
        ({"encoder": {"heads": 5}}, "a width of 16 cannot be split among 5 heads"),
        ({"encoder": {"depth": 1, "heads": 3, "positions": "absolute"}}, "a width of 16 cannot be split among 3"),
        ({"prosody": ("word",)}, 'no prosody of level "word"'),
        ({"pitch": "cwt"}, "pitch is phoneme or frame"),
        ({"conditioning": "gate", "languages": 2}, "2 languages need a language_dim"),
        ({"reference": {"channels": [8], "strides": [1, 2]}}, "1 channels need as many strides, got 2"),
    ],
)
def test_refuses_designs_that_do_not_exist(options, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny(**options)


def test_references_of_any_rate_are_heard_but_silence_and_clicks_are_not():
    time = np.arange(96_000) / 96_000
    hum = Audio((0.2 * np.sin(2 * np.pi * 150 * time)).astype(np.float32), 96_000)
    assert reference_mel(hum, "16k").shape == (1, 80, 80)
    with pytest.raises(UserError, match=r"has 0\.10 s of sound; give 1 s or more"):
        reference_mel(Audio(hum.samples[:9600], 96_000), "16k")
    with pytest.raises(UserError, match="the reference is silent"):
        reference_mel(Audio(np.zeros(48_000, np.float32), 48_000), "16k")
