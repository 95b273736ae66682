"""What is compared before any work."""

from __future__ import annotations


def check_classes(num_classes: int, data: object) -> None:
    """Compare a model with its data module; one that does not know its classes is taken as it is.

    Args:
        num_classes: Of the model.
        data: The data module, or None.

    Raises:
        ValueError: Their numbers of classes differ.
    """
    classes = getattr(data, "num_classes", num_classes)
    if classes != num_classes:
        raise ValueError(
            f"the model tells {num_classes} classes apart, {type(data).__name__} has "
            f"{classes}; set the model's num_classes to {classes}"
        )
