"""The 64 systems: slug, title of the paper, arXiv id, family; nothing else knows the list.

What a system's status is follows from what is there: its folder in ``vitalk/systems`` and its measurement in
``results``. Nothing here imports a system, so the catalog works without torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitalk import measurement
from vitalk.errors import UserError, nearest

Status = Literal["planned", "works", "reproduced"]
STATUSES: tuple[Status, ...] = ("planned", "works", "reproduced")


@dataclass(frozen=True)
class System:
    """A published system.

    slug: its name here, as in ``vitalk reproduce evit``. title: of the paper. arxiv: id of the preprint.
    family: vision, speech or multimodal. group: the shelf within the family, "" where there is but one.
    """

    slug: str
    title: str
    arxiv: str
    family: str
    group: str

    @property
    def package(self) -> str:
        """The module that holds it: repq-vit -> vitalk.systems.repq_vit."""
        return f"vitalk.systems.{self.slug.replace('-', '_')}"

    @property
    def folder(self) -> Path:
        """The folder of that module, whether or not it exists yet."""
        return Path(__file__).parent / "systems" / self.slug.replace("-", "_")

    @property
    def works(self) -> bool:
        """Whether its folder exists; importlib would import vitalk.systems to tell."""
        return (self.folder / "__init__.py").is_file()

    @property
    def shelf(self) -> str:
        """Family and group: "vision / backbones", "multimodal"."""
        return f"{self.family} / {self.group}" if self.group else self.family

    @property
    def url(self) -> str:
        """The paper's page."""
        return f"https://arxiv.org/abs/{self.arxiv}"


# One system a line: slug, arXiv id, title of the paper; under the name of its shelf.
_LIST = """
vision / backbones
  t2t-vit 2101.11986 Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet
  volo 2106.13112 VOLO: Vision Outlooker for Visual Recognition
  dualtoken-vit 2309.12424 DualToken-ViT: Position-aware Efficient Vision Transformer with Dual Token Fusion
  next-vit 2207.05501 Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic Industrial Scenarios
  dhvt 2210.05958 Bridging the Gap Between Vision Transformers and Convolutional Neural Networks on Small Datasets
  tic 2310.04134 TiC: Exploring Vision Transformer in Convolution
  gmm-vit 2309.05375 Toward a Deeper Understanding: RetNet Viewed through Convolution
  vir 2310.19731 ViR: Towards Efficient Vision Retention Backbones
vision / token reduction
  evit 2202.07800 Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations
  sit 2111.12624 Self-slimmed Vision Transformer
  diffrate 2305.17997 DiffRate: Differentiable Compression Rate for Efficient Vision Transformers
  mctf 2403.10030 Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers
  bus 2307.08504 BUS: Efficient and Effective Vision-language Pre-training with Bottom-Up Patch Summarization
vision / dynamic and cheap inference
  lgvit 2308.00255 LGViT: Dynamic Early Exiting for Accelerating Vision Transformer
  shiftaddvit 2306.06446 ShiftAddViT: Mixture of Multiplication Primitives Towards Efficient Vision Transformer
  dimap 2404.13648 Data-independent Module-aware Pruning for Hierarchical Vision Transformers
  edge-moe 2305.18691 Edge-MoE: Memory-Efficient Multi-Task Vision Transformer Architecture with Task-level Sparsity via Mixture-of-Experts
vision / quantization
  repq-vit 2212.08254 RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision Transformers
  is-vit 2311.10126 I&S-ViT: An Inclusive & Stable Method for Pushing the Limit of Post-Training ViTs Quantization
  adalog 2407.12951 AdaLog: Post-Training Quantization for Vision Transformers with Adaptive Logarithm Quantizer
  dopq-vit 2408.03291 DopQ-ViT: Towards Distribution-Friendly and Outlier-Aware Post-Training Quantization for Vision Transformers
  mptq-vit 2401.14895 MPTQ-ViT: Mixed-Precision Post-Training Quantization for Vision Transformer
  lrp-qvit 2401.11243 LRP-QViT: Mixed-Precision Vision Transformer Quantization via Layer-wise Relevance Propagation
  q-hyvit 2303.12557 Q-HyViT: Post-Training Quantization of Hybrid Vision Transformers with Bridge Block Reconstruction for IoT Systems
  vit-quant-survey 2405.00314 Model Quantization and Hardware Acceleration for Vision Transformers: A Comprehensive Survey
vision / search
  as-vit 2202.11921 Auto-scaling Vision Transformers without Training
  vit-resnas 2109.00642 Searching for Efficient Multi-Stage Vision Transformers
  elasticvit 2303.09730 ElasticViT: Conflict-aware Supernet Training for Deploying Fast Vision Transformer on Diverse Mobile Devices
vision / training
  ewa 2308.06093 Experts Weights Averaging: A New General Training Scheme for Vision Transformers
  deit-lt 2404.02900 DeiT-LT: Distillation Strikes Back for Vision Transformer Training on Long-Tailed Datasets
  mae-thorax 2210.12843 Delving into Masked Autoencoders for Multi-Label Thorax Disease Classification
  dvt 2401.02957 Denoising Vision Transformers
vision / robustness
  patch-robustness 2111.10659 Are Vision Transformers Robust to Patch Perturbations?
  dta 2408.01705 Downstream Transfer Attack: Adversarial Attacks on Downstream Models with Pre-trained Vision Transformers
speech / acoustic models
  fastspeech 1905.09263 FastSpeech: Fast, Robust and Controllable Text to Speech
  fastspeech2 2006.04558 FastSpeech 2: Fast and High-Quality End-to-End Text to Speech
  transformer-tts 1809.08895 Neural Speech Synthesis with Transformer Network
  adaspeech 2103.00993 AdaSpeech: Adaptive Text to Speech for Custom Voice
  portaspeech 2109.15166 PortaSpeech: Portable and High-Quality Generative Text-to-Speech
  delightfultts 2110.12612 DelightfulTTS: The Microsoft Speech Synthesis System for Blizzard Challenge 2021
  usat 2404.18094 USAT: A Universal Speaker-Adaptive Text-to-Speech Approach
speech / zero-shot and style
  f5-tts 2410.06885 F5-TTS: A Fairytaler that Fakes Fluent and Faithful Speech with Flow Matching
  simplespeech2 2408.13893 SimpleSpeech 2: Towards Simple and Efficient Text-to-Speech with Flow-based Scalar Latent Transformer Diffusion Models
  styletts-zs 2409.10058 StyleTTS-ZS: Efficient High-Quality Zero-Shot Text-to-Speech Synthesis with Distilled Time-Varying Style Diffusion
  mobilespeech 2402.09378 MobileSpeech: A Fast and High-Fidelity Framework for Mobile Zero-Shot Text-to-Speech
  mm-tts 2312.10687 MM-TTS: Multi-Modal Prompt based Style Transfer for Expressive Text-to-Speech Synthesis
  prompttts2 2309.02285 PromptTTS 2: Describing and Generating Voices with Text Prompt
  mega-tts 2306.03509 Mega-TTS: Zero-Shot Text-to-Speech at Scale with Intrinsic Inductive Bias
  zmm-tts 2312.14398 ZMM-TTS: Zero-shot Multilingual and Multispeaker Speech Synthesis Conditioned on Self-supervised Discrete Speech Representations
speech / language models
  vall-e-r 2406.07855 VALL-E R: Robust and Efficient Zero-Shot Text-to-Speech Synthesis via Monotonic Alignment
  ham-tts 2403.05989 HAM-TTS: Hierarchical Acoustic Modeling for Token-Based Zero-Shot Text-to-Speech with Model and Data Scaling
  pheme 2401.02839 Pheme: Efficient and Conversational Speech Generation
  fish-speech 2411.01156 Fish-Speech: Leveraging Large Language Models for Advanced Multilingual Text-to-Speech Synthesis
  touchtts 2412.08237 TouchTTS: An Embarrassingly Simple TTS Framework that Everyone Can Touch
  seed-tts 2406.02430 Seed-TTS: A Family of High-Quality Versatile Speech Generation Models
  fireredtts 2409.03283 FireRedTTS: A Foundation Text-To-Speech Framework for Industry-Level Generative Speech Applications
speech / corpora and evaluation
  indicvoices-r 2409.05356 IndicVoices-R: Unlocking a Massive Multilingual Multi-speaker Speech Corpus for Scaling Indian TTS
  clartts 2303.00069 ClArTTS: An Open-Source Classical Arabic Text-to-Speech Corpus
  dtw-siamesenet 2303.00171 DTW-SiameseNet: Dynamic Time Warped Siamese Network for Mispronunciation Detection and Correction
multimodal
  fastvlm 2412.13303 FastVLM: Efficient Vision Encoding for Vision Language Models
  ep-alm 2303.11403 eP-ALM: Efficient Perceptual Augmentation of Language Models
  evjvqa 2302.11752 EVJVQA Challenge: Multilingual Visual Question Answering
  datacomp 2304.14108 DataComp: In search of the next generation of multimodal datasets
  vintage 2412.10768 VinTAGe: Joint Video and Text Conditioning for Holistic Audio Generation
"""  # noqa: E501


def _systems() -> Iterator[System]:
    shelf = ""
    for line in _LIST.strip().splitlines():
        if not line.startswith(" "):
            shelf = line
            continue
        slug, arxiv, title = line.split(maxsplit=2)
        family, _, group = shelf.partition(" / ")
        yield System(slug, title, arxiv, family, group)


SYSTEMS: tuple[System, ...] = tuple(_systems())


def find(slug: str) -> System:
    """The system called ``slug``. Raises UserError, with the nearest name, where there is none."""
    for system in SYSTEMS:
        if system.slug == slug:
            return system
    hint = nearest(slug, [system.slug for system in SYSTEMS])
    raise UserError(f"there is no system {slug!r}.{hint} `vitalk systems` lists them")


def status(system: System) -> Status:
    """planned: no code yet; works: its folder is here; reproduced: a measurement bears out the paper's claim.

    Raises UserError where its file in ``results`` is not a measurement.
    """
    if not system.works:
        return "planned"
    result = measurement.find(system.slug)
    return "reproduced" if result is not None and result.verdict == "reproduced" else "works"
