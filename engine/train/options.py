"""Options that many recipes share and that need no heavy library to be read and checked."""

from __future__ import annotations

from dataclasses import dataclass

from engine.choices import Keep
from loaders.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ValidationOptions:
    """On which images a run with labels is measured while it trains, and what becomes of that."""

    validation_split: str | None = None
    """What to measure on while training: a labelled split, or a label table (.parquet), whose rows are then
    not trained on; "" for nothing. By default the table that the run of --init set aside; else a split named
    val or validation; else a tenth of the labels, where every class has 20; else nothing. The first line of
    a run says which."""
    validation_share: float | None = None
    """In its place: share of the training labels to set aside, class by class, chosen by --label-seed and
    left as labels/validation.parquet in the run folder; 0 for none."""
    validate_every: int | None = None
    """Steps between these measurements; by default a twentieth of the run. The end is measured too."""
    keep: Keep = "last"
    """Weights that the run leaves to be used, and whose test accuracy is measured: the last; or the best by
    validation accuracy, the last then lie in last/."""
    patience: int = 0
    """Stop after so many measurements without a rise of the validation accuracy; 0 trains to the end."""

    def check_validation(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            UserError: the first.
        """
        if self.validation_split and self.validation_share:
            raise UserError(
                "validation: expected --validation-split or --validation-share, found both; leave out one"
            )
        if self.validation_share is not None and not 0.0 <= self.validation_share < 1.0:
            raise UserError(
                f"validation_share: expected a share below 1, found {self.validation_share}; lower it"
            )
        if self.validate_every == 0:
            raise UserError("validate_every: expected more than 0 steps, found 0; raise it")
        off = (self.validation_split == "" and not self.validation_share) or (
            self.validation_share == 0.0 and not self.validation_split
        )
        if off and (self.patience or self.keep == "best"):
            raise validation_missing()


def validation_missing() -> UserError:
    """Return the refusal to stop or to choose by what is not measured."""
    return UserError(
        "validation: --patience and --keep best choose by images that are not the test's; expected "
        "--validation-split or --validation-share, found neither"
    )
