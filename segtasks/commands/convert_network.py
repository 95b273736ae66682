"""Networks and optimizers by the names that other configurations have for them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from segtasks.commands.convert_report import Conversion, Keys

_TASK = "task.init_args"
_MODEL = f"{_TASK}.model"

#: Name without its punctuation, in small letters -> function in `segtasks.models.dformer`.
VARIANTS: Mapping[str, str] = {
    "dformertiny": "dformer_tiny",
    "dformersmall": "dformer_small",
    "dformerbase": "dformer_base",
    "dformerlarge": "dformer_large",
    "dformert": "dformer_tiny",
    "dformers": "dformer_small",
    "dformerb": "dformer_base",
    "dformerl": "dformer_large",
    "dformerv2s": "dformerv2_s",
    "dformerv2b": "dformerv2_b",
    "dformerv2l": "dformerv2_l",
}
DECODERS: Mapping[str, str] = {
    "ham": "ham",
    "lightham": "ham",
    "lighthamhead": "ham",
    "mlp": "mlp",
    "mlpdecoder": "mlp",
    "segformerhead": "mlp",
}
OPTIMIZERS: Mapping[str, str] = {"adamw": "AdamW", "sgdm": "SGD", "sgd": "SGD"}


def set_variant(keys: Keys, report: Conversion, key: str) -> str:
    """The network; returns the name of its function.

    Raises:
        ValueError: There is none of this name, or no name.
    """
    name = keys.take(key, str, f"{_MODEL}.class_path")
    if name is None:
        raise ValueError(f"the configuration has no {key} that can be read, so no network")
    function = _found(keys, key, name, VARIANTS)
    report.set(f"{_MODEL}.class_path", f"segtasks.models.dformer.{function}")
    return function


def set_decoder(keys: Keys, report: Conversion, decoder: str, width: str) -> None:
    """The decoder and its width; the network's own where the configuration does not say.

    Raises:
        ValueError: There is no decoder of this name.
    """
    name = keys.take(decoder, str, f"{_MODEL}.init_args.decoder")
    if name is not None:
        found = _found(keys, decoder, name, DECODERS)
        report.set(f"{_MODEL}.init_args.decoder", found)
    channels = keys.take(width, int, f"{_MODEL}.init_args.decoder_embed_dim")
    if channels is not None:
        report.set(f"{_MODEL}.init_args.decoder_embed_dim", channels)
    auxiliary = keys.take("aux_rate", float)
    if auxiliary == 0:
        report.dropped.append("aux_rate: 0, and there is no auxiliary head here")
    elif auxiliary is not None:
        report.remarks.append(f"aux_rate is {auxiliary}: there is no auxiliary head here")


def set_optimizer(keys: Keys, report: Conversion, key: str, options: Mapping[str, str]) -> None:
    """The optimizer.

    Args:
        keys: The configuration.
        report: Ours.
        key: Which one it is; AdamW where that is not said.
        options: Key of each of its options -> ours.

    Raises:
        ValueError: There is none of this name.
    """
    place = f"{_TASK}.optimizer"
    name = keys.take(key, str, f"{place}.class_path")
    kind = "AdamW" if name is None else _found(keys, key, name, OPTIMIZERS)
    report.set(f"{place}.class_path", f"jtlightning.optim.{kind}")
    for option, ours in options.items():
        value = keys.take(option, float, f"{place}.init_args.{ours}")
        if value is not None:
            report.set(f"{place}.init_args.{ours}", value)
    if kind == "SGD":
        momentum = keys.take("momentum", float, f"{place}.init_args.momentum")
        if momentum is not None:
            report.set(f"{place}.init_args.momentum", momentum)
    else:
        keys.drop("momentum", "of SGD alone")


def _found(keys: Keys, key: str, name: str, known: Mapping[str, str]) -> str:
    plain = re.sub(r"[\W_]", "", name).lower()
    if plain not in known:
        raise ValueError(
            f"{keys.where(key)}: {key} is {name!r}, which does not exist here; known are "
            f"{', '.join(dict.fromkeys(known.values()))}"
        )
    return known[plain]
