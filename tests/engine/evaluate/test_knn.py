"""The kNN vote equals that of scikit-learn with the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from engine.evaluate import knn
from engine.evaluate.knn import knn_scores


def clouds(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (num,), generator=generator)
    centres = torch.eye(4, 12)[labels]
    return centres + 0.5 * torch.randn(num, 12, generator=generator), labels


@pytest.mark.parametrize("k", [1, 20])
def test_equals_scikit_learn(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "_CHUNK_SIZE", 64)
    (bank_h, bank_labels), (query_h, _) = clouds(300, 0), clouds(150, 1)
    scores = knn_scores(bank_h, bank_labels, query_h, num_classes=4, k=k, temperature=0.1)

    def weigh(cosine_distance: np.ndarray) -> np.ndarray:
        return np.exp((1.0 - cosine_distance) / 0.1)

    reference = KNeighborsClassifier(k, weights=weigh, metric="cosine", algorithm="brute")
    reference.fit(bank_h.double().numpy(), bank_labels.numpy())
    expected = reference.predict_proba(query_h.double().numpy())
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-4)


def test_the_scale_of_an_image_does_not_matter() -> None:
    (bank_h, bank_labels), (query_h, _) = clouds(100, 0), clouds(50, 1)
    scales = torch.rand(100, 1) * 9 + 1
    scaled = knn_scores(bank_h * scales, bank_labels, query_h * 7, num_classes=4)
    torch.testing.assert_close(scaled, knn_scores(bank_h, bank_labels, query_h, num_classes=4))


def test_wrong_k_and_unlabelled_banks_are_refused() -> None:
    h, labels = clouds(10, 0)
    with pytest.raises(ValueError, match="between 1 and the 10 images"):
        knn_scores(h, labels, h, num_classes=4, k=11)
    with pytest.raises(ValueError, match="leave unlabelled images out"):
        knn_scores(h, labels - 1, h, num_classes=4, k=3)


def test_a_bank_on_the_disk_is_read_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (bank_h, bank_labels), (query_h, _) = clouds(300, 0), clouds(50, 1)
    np.save(tmp_path / "bank.npy", bank_h.half().numpy())
    bank = torch.from_numpy(np.load(tmp_path / "bank.npy", mmap_mode="c"))
    whole = knn_scores(bank.float(), bank_labels, query_h, num_classes=4)
    monkeypatch.setattr(knn, "_BANK_CHUNK", 70)  # the last part is smaller than k
    torch.testing.assert_close(knn_scores(bank, bank_labels, query_h, num_classes=4), whole)
