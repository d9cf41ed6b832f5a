"""Sharing trained networks through the Hugging Face Hub, as safetensors with a card; needs the extra ``hub``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from dnas.data import AugmentationConfig, Labels
from dnas.errors import UserError
from dnas.export.card import card_text
from dnas.export.metadata import describe
from dnas.workflows.exporting import run_facts
from dnas.workflows.networks import LoadedNetwork, build_network


class HubNetwork(nn.Module, PyTorchModelHubMixin):
    """A trained network with what its users need, for ``from_pretrained``, ``save_pretrained`` and ``push_to_hub``.

    network: the description in a run's configuration, an architecture or a name. class_names, colours: the classes.
    mean, std: of normalised RGB images in 0 to 1. input_size: (height, width) that it was trained for. licence: of the
    weights. facts: further lines of the card, such as the mIoU.
    """

    def __init__(
        self,
        network: dict[str, Any],
        class_names: Sequence[str],
        colours: Sequence[Sequence[int]],
        mean: Sequence[float],
        std: Sequence[float],
        input_size: Sequence[int],
        licence: str | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        height, width = input_size
        self.labels = Labels(tuple(class_names), tuple((int(r), int(g), int(b)) for r, g, b in colours))
        self.mean, self.std, self.input_size = tuple(mean), tuple(std), (int(height), int(width))
        self.licence, self.facts = licence, dict(facts or {})
        self.network = build_network(network, self.labels.num_classes, "config.json", len(self.mean))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes, H, W) of normalised images (N, 3, H, W)."""
        logits: Tensor = self.network(images)
        return logits

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card: classes, colours, normalisation, size, licence and how to use it."""
        metadata = describe(
            self.network,
            self.input_size,
            class_names=self.labels.names,
            colours=self.labels.colours,
            mean=self.mean,
            std=self.std,
            licence=self.licence,
        )
        usage = (
            "from dnas.workflows.hub import HubNetwork",
            "",
            'network = HubNetwork.from_pretrained("USER/NAME")',
            "logits = network(images)",
        )
        return ModelCard(card_text("Segmentation network", "model.safetensors", metadata, self.facts, usage=usage))

    def loaded(self, name: str) -> LoadedNetwork:
        """The network as other workflows take it."""
        return LoadedNetwork(
            name=name,
            network=self.network.eval(),
            num_classes=self.labels.num_classes,
            input_size=self.input_size,
            labels=self.labels,
            class_names=self.labels.names,
            augmentation=AugmentationConfig(mean=self.mean, std=self.std),
        )


def hub_network(loaded: LoadedNetwork, licence: str | None = None) -> HubNetwork:
    """The network of a run of ``dnas retrain`` in the form for the Hub; anything else is a :class:`UserError`."""
    if loaded.run is None or loaded.labels is None or loaded.augmentation is None or loaded.input_size is None:
        raise UserError(f"{loaded.name}: expected the run folder of dnas retrain")
    shared = HubNetwork(
        network=dict(loaded.run.configuration["network"]),
        class_names=list(loaded.labels.names),
        colours=[list(colour) for colour in loaded.labels.colours],
        mean=list(loaded.augmentation.mean),
        std=list(loaded.augmentation.std),
        input_size=list(loaded.input_size),
        licence=licence,
        facts=run_facts(loaded),
    )
    shared.network.load_state_dict(loaded.network.state_dict())
    return shared.eval()


def load_from_hub(reference: str) -> LoadedNetwork:
    """The network of a folder that :meth:`HubNetwork.save_pretrained` wrote, or of a repository ``USER/NAME``.

    Raises :class:`UserError` if it cannot be found or holds something else.
    """
    try:
        network: HubNetwork = HubNetwork.from_pretrained(reference)
    except UserError:
        raise
    except Exception as error:  # of the network, of the file system, of safetensors
        reason = str(error).strip().splitlines()[:1]
        raise UserError(f"{reference}: no network of dnas share there ({''.join(reason)[:200]})") from None
    return network.loaded(Path(reference).name)
