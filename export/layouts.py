"""The variants in which official weights are stored, brought to one set of names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from vexpress_trt.export.nets.layout import is_motion_key

StateDict = dict[str, Tensor]

# diffusers before 0.12 named the attention of the autoencoder differently; some files store it as 1x1 convolutions.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION_KEY = re.compile(r"((?:en|de)coder\.mid_block\.attentions\.\d+)\.(query|key|value|proj_attn)\.(\w+)")
_ATTENTION_WEIGHT = re.compile(r"(?:en|de)coder\.mid_block\.attentions\.\d+\.to_(?:q|k|v|out\.0)\.weight")

_AUDIO_PREFIX = "wav2vec2."
_AUDIO_HEADS = ("lm_head.", "quantizer.", "project_hid.", "project_q.")  # of speech recognition and of pre-training
_AUDIO_MASK = "masked_spec_embed"  # acts in training only
_POSITION_CONV = "encoder.pos_conv_embed.conv."
_OLD_WEIGHT_NORM = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}


@dataclass(frozen=True)
class Renamed:
    """Tensors under their present names, and the name each has in its file (for messages)."""

    tensors: StateDict
    stored_names: dict[str, str]

    @classmethod
    def unchanged(cls, tensors: StateDict) -> "Renamed":
        """For files that are named as they should be."""
        return cls(tensors, {name: name for name in tensors})


def autoencoder_layout(stored: Mapping[str, Tensor]) -> Renamed:
    """Autoencoder weights under diffusers' present attention names, whichever of the two the file has.

    Attention weights stored as 1x1 convolutions [C, C, 1, 1] become [C, C].
    """
    tensors, names = {}, {}
    for name, tensor in stored.items():
        present = name
        if match := _OLD_ATTENTION_KEY.fullmatch(name):
            present = f"{match[1]}.{_OLD_ATTENTION[match[2]]}.{match[3]}"
        if present in tensors or (present != name and present in stored):
            present = name  # stored under both names: the old one is reported as unexpected
        if _ATTENTION_WEIGHT.fullmatch(present) and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        tensors[present], names[present] = tensor, name
    return Renamed(tensors, names)


def audio_encoder_layout(stored: Mapping[str, Tensor]) -> Renamed:
    """Encoder weights of a wav2vec 2.0 file with or without a head, under the names of the bare model.

    Heads, and the embedding that masks in training, are left out. The positional convolution's weight norm gets its
    present names; a plain weight stays one.
    """
    prefixed = any(name.startswith(_AUDIO_PREFIX) for name in stored)
    tensors, names = {}, {}
    for name, tensor in stored.items():
        present = name.removeprefix(_AUDIO_PREFIX) if prefixed else name
        if present == _AUDIO_MASK or present.startswith(_AUDIO_HEADS):
            continue
        if present.startswith(_POSITION_CONV):
            last = present.removeprefix(_POSITION_CONV)
            present = _POSITION_CONV + _OLD_WEIGHT_NORM.get(last, last)
        tensors[present], names[present] = tensor, name
    return Renamed(tensors, names)


def has_plain_position_weight(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the positional convolution is stored without weight norm."""
    return _POSITION_CONV + "weight" in tensors


def plain_position_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """An audio encoder's {name: shape} with a plain weight in place of the positional convolution's weight norm."""
    shapes = dict(shapes)
    shapes.pop(_POSITION_CONV + "parametrizations.weight.original0")
    shapes[_POSITION_CONV + "weight"] = shapes.pop(_POSITION_CONV + "parametrizations.weight.original1")
    return shapes


def split_motion(tensors: Mapping[str, Tensor]) -> tuple[StateDict, StateDict]:
    """A denoising_unet file's own tensors, and the motion module's, which only files of the full layout have."""
    own = {name: tensor for name, tensor in tensors.items() if not is_motion_key(name)}
    return own, {name: tensor for name, tensor in tensors.items() if is_motion_key(name)}
