"""Says what training does to its images, in the words of the settings; nothing here touches an image or needs PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass

from nas.config.training import Training


@dataclass(frozen=True)
class Augmentation:
    """Says how training images are changed: shifted and mirrored, then by a policy, partly erased, mixed in pairs.

    ``kind`` is one of ``augment.KINDS``, ``policy`` one of ``policies.POLICIES`` or ``none``, ``erase`` the share of
    images that lose a rectangle, ``mix`` one of ``mixing.KINDS`` or ``none``: that in fine-tuning alone.
    """

    kind: str
    policy: str = "none"
    erase: float = 0.0
    mix: str = "none"

    @staticmethod
    def from_config(train: Training, suits: str) -> Augmentation:
        """Returns what the settings ask for; ``suits`` is the kind that suits the images, where none is given."""
        return Augmentation(train.augment or suits, train.policy, train.erase, train.mix)
