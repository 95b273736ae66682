from __future__ import annotations

import pytest

from jtlightning.data.datamodule import DataModule


class OnlyTraining(DataModule):
    def train_dataloader(self) -> list[int]:
        return [1]


def test_missing_loader_is_named_with_its_class():
    data = OnlyTraining()
    data.prepare_data()
    data.setup("fit")
    assert data.train_dataloader() == [1]
    assert data.val_dataloader() is None
    for name in ("test", "predict"):
        with pytest.raises(NotImplementedError, match=rf"OnlyTraining .* {name}_dataloader\(\)"):
            getattr(data, f"{name}_dataloader")()
    data.teardown("fit")
