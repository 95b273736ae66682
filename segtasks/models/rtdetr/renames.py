"""Names in other files of RT-DETR: those of its second version, and of pre-trained backbones."""

from __future__ import annotations

import re

#: What a name looks like -> what it becomes, as `re.sub` takes them. The first is that of a
#: backbone that was pre-trained alone; the others are the second version's names of parts that
#: are the same in both.
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^(?=(conv1|res_layers)\.)", "backbone."),
    (r"^(encoder\.input_proj\.\d+)\.conv\.", r"\1.0."),
    (r"^(encoder\.input_proj\.\d+)\.norm\.", r"\1.1."),
    (r"^decoder\.enc_output\.proj\.", "decoder.enc_output.0."),
    (r"^decoder\.enc_output\.norm\.", "decoder.enc_output.1."),
)
#: Constants that the second version saves, which are computed here.
DROPPED = r"^decoder\.(anchors|valid_mask)$|\.cross_attn\.num_points_scale$"
#: The parts whose shapes depend on the number of classes.
CLASS_PARTS = ("decoder.enc_score_head", "decoder.dec_score_head", "decoder.denoising_class_embed")


def official_name(name: str) -> str | None:
    """The name in the first version's networks, or None for a constant that nothing reads."""
    if re.search(DROPPED, name):
        return None
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
