"""AdaSpeech against its public reimplementations, the paper's counts and invariants, and ONNX."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.parity import parity
from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import length_mask
from vitalk.speech.acoustic.variance import Spread, VariancePredictor
from vitalk.systems.adaspeech import (
    Adapter,
    AdaSpeech,
    ConditionalLayerNorm,
    FoldedLayerNorm,
    UtteranceEncoder,
    adaspeech,
    adaspeech_small,
    adaspeech_tuanh,
    fold,
    from_rishikksh20,
    from_tuanh123789,
    phoneme_mel,
)
from vitalk.systems.adaspeech.adaptation import tuned, with_new_voice
from vitalk.systems.adaspeech.conditional import norms
from vitalk.systems.adaspeech.training import ForVoice
from vitalk.systems.adaspeech.voices import fingerprint
from vitalk.systems.fastspeech2 import Encoding, Predictor, Targets

PARITY = Path(__file__).parents[1] / "parity"
BLOCKS = Encoding(1, 2, 24, (3, 1))
TINY = {"dim": 16, "mels": 5, "encoder": BLOCKS, "decoder": BLOCKS, "pitch": "phoneme", "energy": "phoneme"}
LENGTHS = torch.tensor([7, 4])


def tiny(**options):
    torch.manual_seed(0)
    model = AdaSpeech(12, **{**TINY, "speakers": 3, "energy_spread": Spread(2.0, 1.5, 0.0, 9.0), **options}).eval()
    nn.init.constant_(model.duration.linear.bias, 1.3)  # untrained, it would hardly speak
    for norm in norms(model).values():  # as if they had learnt
        nn.init.normal_(norm.scale.weight, std=0.1)
        nn.init.normal_(norm.bias.weight, std=0.1)
    nn.init.normal_(model.references)
    return model


def text(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 12, (2, 7), generator=generator)
    durations = torch.randint(1, 5, (2, 7), generator=generator) * length_mask(LENGTHS, 7)
    return ids, durations, torch.randn(2, 5, int(durations.sum(1).max()), generator=generator)


def official(known):
    return {key: torch.from_numpy(value) for key, value in parity.filled_state(known).items()}


def inputs(known):
    return {name: torch.from_numpy(parity.tensor(name, **spec)) for name, spec in known["inputs"].items()}


# Counts


def test_the_counts_are_the_published_ones():
    with torch.device("meta"):
        model = adaspeech(76)
        assert len(norms(model)) == 9
        weights = tuned(with_new_voice(model), "conditional")
        assert sum(p.numel() for p in weights) == 1_184_512 and len(weights) == 1 + 4 * 9
        assert sum(p.numel() for p in tuned(model, "embedding")) == 256
        assert sum(p.numel() for p in tuned(model, "norm")) == 4_864
        assert sum(p.numel() for p in model.utterance.parameters()) == 431_616
        assert sum(p.numel() for p in model.phoneme.parameters()) == 260_612
        assert sum(p.numel() for p in model.phoneme_predictor.parameters()) == 395_780
        plain = adaspeech(76, conditional=False, levels=[])
        assert not norms(plain) and plain.utterance is None and plain.phoneme is None
        assert sum(p.numel() for p in tuned(plain, "norm")) == 4_864
    adapter = Adapter.of(AdaSpeech(4, encoder=Encoding(0), decoder=Encoding(4, hidden=2)), "x", "")
    assert adapter.numbers == 4_864 + 256 and len(adapter.affine) == 9


def test_the_small_model_is_small():
    with torch.device("meta"):
        assert 6e6 < sum(p.numel() for p in adaspeech_small(320, speakers=4).parameters()) < 8e6


# Parity


@torch.inference_mode()
def test_the_norm_agrees_with_tuanh123789():
    known = parity.load(PARITY / "adaspeech.conditional_layer_norm.json")
    norm, given_ = ConditionalLayerNorm(40, 256), inputs(known)
    assert sum(p.numel() for p in norm.parameters()) == known["params"]
    state = from_tuanh123789(official(known))
    norm.load_state_dict({key.removeprefix("mel_norm."): value for key, value in state.items()})
    x, speaker = 3 * given_["x"] + 1, given_["speaker_embedding"]
    assert parity.distance(norm(x, speaker).numpy(), known["outputs"]["normalised"]) < 1e-4
    assert parity.distance(norm.affine(speaker)[:, 0].numpy(), known["outputs"]["scale"]) < 1e-4


@torch.inference_mode()
def test_acoustic_encoders_agree_with_rishikksh20():
    known = parity.load(PARITY / "adaspeech.acoustic_encoders.json")
    parts = nn.ModuleDict(
        {
            "utterance": UtteranceEncoder(20, 32),
            "phoneme": VariancePredictor(20, 32, 4),
            "phoneme_predictor": VariancePredictor(32, 32, 4),
        }
    ).eval()
    assert sum(p.numel() for p in parts.parameters()) == known["params"]
    parts.load_state_dict(from_rishikksh20(official(known)))
    given_, seen = inputs(known), {}
    parts["utterance"].norms[0].register_forward_hook(lambda _, __, out: seen.update(first=out.mT))
    found = {
        "utterance": parts["utterance"](given_["mel"])[..., None],
        "utterance_conv_0": seen["first"],
        "phoneme": parts["phoneme"](given_["phoneme_mel"].mT),
        "predicted": parts["phoneme_predictor"](given_["hidden"].mT),
    }
    for name, value in found.items():
        assert parity.distance(value.numpy(), known["outputs"][name]) < 1e-4, name


def agree(name, known, output, item):
    """Compare one item; the other is padded, and padding has a say in the reimplementation."""
    record = known["outputs"][name]
    assert list(output.shape) == record["shape"], name
    kept = (torch.arange(output.numel()) // output[0].numel() == item)[record["index"]].numpy()
    assert kept.any(), name
    one = {key: np.asarray(record[key])[kept].tolist() for key in ("index", "value")}
    assert parity.distance(output.numpy(), {**record, **one}) < 1e-4, name


@torch.inference_mode()
def test_the_whole_model_agrees_with_tuanh123789():
    known = parity.load(PARITY / "adaspeech.cln_small.json")
    sizes = {"encoder": Encoding(1, 2, 64), "decoder": Encoding(2, 2, 64), "predictor": Predictor(hidden=48)}
    model = adaspeech_tuanh(110, **sizes, phoneme=Predictor(hidden=64), speakers=7, languages=2).eval()
    assert sum(p.numel() for p in model.parameters()) == known["params"]
    missing, unexpected = model.load_state_dict(from_tuanh123789(official(known)), strict=False)
    assert not unexpected
    assert {key.rsplit(".", 1)[-1] for key in missing} <= {"mean", "std", "edges", "references", "num_batches_tracked"}
    given_, lengths, seen = inputs(known), torch.tensor([10, 8]), {}
    inside = length_mask(lengths, 10)
    durations = given_["durations"] * inside
    model.encoder.register_forward_hook(lambda _, __, out: seen.update(encoder=out))
    model.decoder.register_forward_hook(lambda _, __, out: seen.update(decoder=out))
    speaker, language = torch.tensor([2, 5]), torch.tensor([0, 1])
    told = (given_["tokens"] * inside, lengths, durations, given_["pitch"], given_["energy"], speaker, language)
    utterance = model.utterance(given_["mel"].mT)
    latents = model.phoneme(given_["phoneme_mel"])
    out = model(*told, utterance, latents)
    found = {"encoder": seen["encoder"], "decoder": seen["decoder"], "mel": out.mel_coarse.mT, "mel_post": out.mel.mT,
             "pitch": out.pitch_prediction, "log_duration": out.log_durations,
             "phoneme_predicted": out.latents_prediction, "phoneme_encoded": latents}  # fmt: skip
    longest = int(durations.sum(1).argmax())
    assert longest == 0 and durations[0].sum() == 21, "the first item has no padding"
    for name, value in found.items():
        agree(name, known, value, 0)
    agree("inference_mel", known, model(*told, utterance).mel_coarse.mT, 0)


def test_converts_models_without_conditional_blocks():
    state = {
        "module.decoder.layer_stack.0.slf_attn.layer_norm.weight": torch.ones(4),
        "module.decoder.layer_stack.0.pos_ffn.layer_norm.W_bias.bias": torch.ones(4),
        "module.layer_norm.W_scale.weight": torch.ones(2, 4),
        "module.phone_level_embed.bias": torch.ones(4),
        "module.speaker_emb.weight": torch.ones(2, 4),
        "module.postnet.convolutions.0.1.num_batches_tracked": torch.tensor(1),
    }
    assert set(from_tuanh123789(state)) == {
        "decoder.blocks.0.norm1.weight", "decoder.blocks.0.norm2.bias.bias", "mel_norm.scale.weight",
        "phoneme_embedding.bias", "voices.weight", "postnet.norms.0.num_batches_tracked",
    }  # fmt: skip
    with torch.device("meta"):
        assert set(norms(adaspeech_tuanh(9, conditional=False))) == {"mel_norm"}
    assert set(
        from_rishikksh20({"encoder.embed.0.weight": torch.ones(1), "phone_level_embed.bias": torch.ones(1)})
    ) == {"phoneme_embedding.bias"}


# Norms and what they fold into


@given(st.integers(0, 10**6), st.integers(1, 40))
@settings(max_examples=20, deadline=None)
@torch.inference_mode()
def test_a_fresh_norm_is_a_layer_norm(seed, dim):
    generator = torch.Generator().manual_seed(seed)
    x, condition = torch.randn(2, 5, dim, generator=generator) * 9, torch.randn(2, 6, generator=generator)
    assert torch.equal(ConditionalLayerNorm(dim, 6)(x, condition), nn.LayerNorm(dim)(x))


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
@torch.inference_mode()
def test_folded_norms_are_the_same(seed):
    torch.manual_seed(seed)
    norm, vectors, voice = ConditionalLayerNorm(8, 6), torch.randn(4, 6), torch.randint(4, (3,))
    nn.init.normal_(norm.scale.weight), nn.init.normal_(norm.bias.weight)
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(FoldedLayerNorm(norm.affine(vectors))(x, voice), norm(x, vectors[voice]))


@torch.inference_mode()
@pytest.mark.parametrize("final", ["hidden", "mel"])
@pytest.mark.parametrize("conditional", [True, False])
def test_a_folded_model_says_the_same(final, conditional):
    model, (ids, durations, _) = tiny(final_norm=final, conditional=conditional), text()
    folded, speaker = fold(model), torch.tensor([2, 0])
    assert not norms(folded) and bool(norms(model)) == (conditional or final == "mel")
    want = model(ids, LENGTHS, durations, speaker=speaker)
    got = folded(ids, LENGTHS, durations, speaker=speaker)
    torch.testing.assert_close(got.mel, want.mel)
    torch.testing.assert_close(got.log_durations, want.log_durations)


@torch.inference_mode()
def test_an_adapter_leaves_the_others_bit_for_bit(tmp_path):
    model, (ids, _, _) = tiny(), text()
    other = with_new_voice(model)
    nn.init.normal_(other.voices.weight)
    for norm in norms(other).values():
        nn.init.normal_(norm.bias.bias)
    path = Adapter.of(other, "anna", fingerprint(model)).save(tmp_path / "anna.safetensors")
    before = fingerprint(model)
    alone, joined = fold(model), fold(model, [Adapter.load(path)])
    assert fingerprint(model) == before and joined.voices.num_embeddings == 4
    for number in range(3):
        told = {"ids": ids[:1], "speaker": torch.tensor([number])}
        assert torch.equal(alone(**told).mel, joined(**told).mel)
    said = joined(ids[:1], speaker=torch.tensor([3])).mel
    torch.testing.assert_close(said, other(ids[:1], speaker=torch.tensor([0])).mel)
    assert path.stat().st_size < 4 * Adapter.load(path).numbers + 1500
    with pytest.raises(UserError, match="made for another model"):
        fold(other, [Adapter.load(path)])
    with pytest.raises(UserError, match="there is no speaker"):
        alone(ids[:1], speaker=torch.tensor([3]))


# Levels


@given(st.lists(st.integers(0, 6), min_size=1, max_size=9).filter(any), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_a_phoneme_s_mel_is_the_mean_of_its_frames(durations, mels):
    rows = torch.randn(len(durations), mels)
    constant = rows.repeat_interleave(torch.tensor(durations), 0).T[None]
    found = phoneme_mel(constant, torch.tensor([durations]))[0]
    for row, length, got in zip(rows, durations, found, strict=True):
        torch.testing.assert_close(got, row if length else torch.zeros(mels))


def test_durations_that_do_not_fit_a_mel_are_refused():
    with pytest.raises(UserError, match="durations of 5 frames do not fit a mel of 6"):
        phoneme_mel(torch.zeros(1, 3, 6), torch.tensor([[2, 3]]))


@torch.inference_mode()
@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.sampled_from([(5, 3), (3, 2), (7, 4), (3, 1)]))
@settings(max_examples=20, deadline=None)
def test_an_utterance_s_vector_hangs_on_nothing_beside_it(lengths, shape):
    torch.manual_seed(0)
    encoder = UtteranceEncoder(4, 8, kernel=shape[0], stride=shape[1]).eval()
    mel = torch.randn(len(lengths), 4, max(lengths))
    together = encoder(mel, torch.tensor(lengths))
    assert together.shape == (len(lengths), 8)
    for row, length, vector in zip(mel, lengths, together, strict=True):
        torch.testing.assert_close(encoder(row[None, :, :length])[0], vector, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(encoder(mel + 1, torch.tensor(lengths)), together)


@torch.inference_mode()
@pytest.mark.parametrize("levels", [("utterance", "phoneme"), ("utterance",), ("phoneme",), ()])
@pytest.mark.parametrize("told", [True, False])
def test_padding_changes_nothing(levels, told):
    model, (ids, durations, mel) = tiny(levels=levels, postnet=True, rounding="total"), text()
    speaker = torch.tensor([1, 2])
    known = {"durations": durations, **model.listen(mel, durations, LENGTHS)} if told else {}
    together = model(ids, LENGTHS, speaker=speaker, **known)
    for i, length in enumerate(LENGTHS.tolist()):
        frames, row = int(together.mel_lengths[i]), {}
        if told:
            row = {"durations": durations[i : i + 1, :length]}
            row |= model.listen(mel[i : i + 1, :, :frames], row["durations"])
        alone = model(ids[i : i + 1, :length], speaker=speaker[i : i + 1], **row)
        assert alone.mel.shape[2] == frames
        torch.testing.assert_close(together.mel[i, :, :frames], alone.mel[0], atol=1e-5, rtol=1e-4)
        assert not together.mel[i, :, frames:].any()
        if "phoneme" in levels:
            got = together.latents_prediction[i]
            torch.testing.assert_close(got[:length], alone.latents_prediction[0], atol=1e-5, rtol=1e-4)
            assert not got[length:].any()


@torch.inference_mode()
def test_voice_utterance_and_phonemes_are_heard():
    model, (ids, durations, mel) = tiny(), text()
    speaker, heard = torch.tensor([1, 2]), model.listen(mel, durations, LENGTHS)
    assert heard["utterance"].shape == (2, 16) and heard["latents"].shape == (2, 7, 4)
    plain = model(ids, LENGTHS, durations, speaker=speaker, **heard).mel
    for changed in (
        {**heard, "speaker": speaker.flip(0)},
        {**heard, "speaker": speaker, "utterance": heard["utterance"].flip(0)},
        {"speaker": speaker, "utterance": heard["utterance"], "latents": heard["latents"] + 1},
    ):
        assert not torch.allclose(model(ids, LENGTHS, durations, **changed).mel, plain)
    by_reference = model(ids, LENGTHS, durations, speaker=speaker)
    assert torch.equal(by_reference.utterance, model.references[speaker])
    assert torch.equal(by_reference.latents, by_reference.latents_prediction)


def test_the_predictor_s_loss_leaves_the_encoder_alone():
    model, (ids, durations, mel) = tiny(), text()
    out = model(ids, LENGTHS, durations, speaker=torch.tensor([0, 1]), **model.listen(mel, durations, LENGTHS))
    pitch = torch.full((2, 7), 200.0)
    losses = model.losses(out, Targets(mel, durations, torch.ones(2, 7), pitch))
    losses["latents"].backward(retain_graph=True)
    assert all(p.grad is None for p in model.phoneme.parameters())
    assert all(p.grad is not None for p in model.phoneme_predictor.parameters())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    inside = length_mask(LENGTHS, 7)
    want = (out.latents_prediction - out.latents)[inside].square().mean()
    torch.testing.assert_close(losses["latents"], want)


def test_trains_in_half_precision():
    model, (ids, durations, mel) = tiny(), text()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(ids, LENGTHS, durations, speaker=torch.tensor([0, 1]), **model.listen(mel, durations, LENGTHS))
        losses = model.losses(out, Targets(mel, durations, torch.ones(2, 7), torch.full((2, 7), 200.0)))
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_refuses_what_does_not_fit():
    model, (ids, _, _) = tiny(), text()
    speaker = torch.tensor([0, 1])
    with pytest.raises(UserError, match=r"there is no speaker \[0, 3\]; numbers go from 0 to 2"):
        model(ids, speaker=torch.tensor([0, 3]))
    with pytest.raises(UserError, match="there is no speaker"):
        model(ids, speaker=torch.tensor([-1, 0]))
    with pytest.raises(UserError, match="needs a speaker; give numbers below 3"):
        model(ids)
    with pytest.raises(UserError, match="knows no language"):
        model(ids, speaker=speaker, language=speaker)
    with pytest.raises(UserError, match="needs a language"):
        tiny(languages=2)(ids, speaker=speaker)
    with pytest.raises(UserError, match="one symbol or more"):
        model(ids[:, :0], speaker=speaker)
    with pytest.raises(UserError, match="latents of shape"):
        model(ids, speaker=speaker, latents=torch.zeros(2, 7, 3))
    with pytest.raises(UserError, match="no utterance level"):
        tiny(levels=["phoneme"])(ids, speaker=speaker, utterance=torch.zeros(2, 16))
    with pytest.raises(UserError, match="no phoneme level"):
        tiny(levels=["utterance"])(ids, speaker=speaker, latents=torch.zeros(2, 7, 4))
    with pytest.raises(UserError, match="levels are utterance, phoneme"):
        tiny(levels=["word"])
    with pytest.raises(UserError, match="0 speakers"):
        tiny(speakers=0)
    with pytest.raises(UserError, match="no centre"):
        UtteranceEncoder(kernel=4)
    assert tiny(speakers=1)(ids).mel.isfinite().all()


# ONNX


@pytest.mark.filterwarnings("ignore")
def test_folded_voices_are_one_graph(tmp_path):
    import onnxruntime as ort

    model = ForVoice(fold(tiny(embedding="curve", rounding="total")), alone=False)
    ids = torch.randint(1, 12, (1, 60))
    example = (ids[:, :9], torch.tensor([1]), *(torch.ones(1) for _ in range(3)))
    torch.onnx.export(
        model, example, dynamo=True, dynamic_shapes=({1: torch.export.Dim("text")}, None, None, None, None),
        opset_version=20, input_names=["ids", "speaker", "speed", "pitch", "energy"], output_names=["mel", "durations"],
        verbose=False,
    ).save(tmp_path / "voice.onnx")  # fmt: skip
    session = ort.InferenceSession(tmp_path / "voice.onnx")
    for length, voice, *factors in ((9, 0, 1.0, 1.0, 1.0), (60, 2, 0.7, 1.3, 0.8), (1, 1, 1.0, 1.0, 1.0)):
        fed = [ids[:, :length], torch.tensor([voice]), *(torch.tensor([factor]) for factor in factors)]
        with torch.inference_mode():
            expected = model(*fed)[0].numpy()
        names = [node.name for node in session.get_inputs()]
        mel, _ = session.run(None, {name: value.numpy() for name, value in zip(names, fed, strict=True)})
        assert mel.shape == expected.shape and np.abs(mel - expected).max() < 1e-4
