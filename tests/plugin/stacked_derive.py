"""The half of the space that begins where the search ends."""

import dataclasses
import itertools
import random
from typing import Literal

import networkx as nx
import torch
from stacked_space import CHANNELS, KERNELS, Head, StackedSpace, Stem
from torch import nn

from derive import Architecture, Derivation, Deriver
from derive.base import VERSION, provenance_of
from dnas.config import Field, config
from dnas.latency import OperatorSpec
from dnas.ops import ConvNormAct


@config
class StackedArchitecture(Architecture):
    """The kernel of every layer."""

    kernels: tuple[int, ...]
    version: int = VERSION
    kind: Literal["stacked"] = "stacked"
    num_classes: int | None = None
    input_size: tuple[int, int] | None = None
    provenance: dict[str, str] = Field(default_factory=dict)

    def build(self, num_classes):
        layers = [ConvNormAct(CHANNELS, CHANNELS, kernel) for kernel in self.kernels]
        return nn.Sequential(Stem(), *layers, Head(num_classes))

    def signatures(self, num_classes, input_size):
        height, width = input_size
        shape = (CHANNELS, height // 8, width // 8)
        return [
            OperatorSpec("stacked_stem", ((3, height, width),), CHANNELS, 8),
            *(OperatorSpec("stacked_conv", (shape,), CHANNELS, extras=(("kernel", k),)) for k in self.kernels),
            OperatorSpec("stacked_head", (shape,), num_classes),
        ]

    def graph(self):
        names = ["stem", *(f"{kernel}x{kernel}" for kernel in self.kernels), "head"]
        graph = nx.DiGraph()
        for index, name in enumerate(names):
            graph.add_node(index, label=name)
        graph.add_edges_from(itertools.pairwise(range(len(names))))
        return graph

    def summary(self):
        return [{"layer": layer, "kernel": kernel} for layer, kernel in enumerate(self.kernels)]


class StackedDeriver(Deriver[StackedSpace]):
    """By brute force: the space is small."""

    architectures = ("network",)

    def draw(self, count, seed):
        generator = random.Random(seed)
        layers = self.space.settings.layers
        return [self._made([generator.choice(KERNELS) for _ in range(layers)]) for _ in range(count)]

    def predict_ms(self, architecture, table):
        return sum(map(table.lookup, architecture.signatures(self.space.num_classes, self.space.input_size)))

    def latency_bounds(self, table):
        found = [self.predict_ms(each, table) for each in self._all()]
        return {"logits": (min(found), max(found))}

    def derived_ms(self, table):
        return lambda logits: {"logits": self.predict_ms(self._likeliest(logits["network.kernel"]), table)}

    def derive(self, run, options):
        which, rule = self.check_options(options, run.path)
        logits = run.load_weights("architecture")["network.kernel"]
        table = self.table_of(run, options)
        target = (options.target_ms or self.space.settings.latency_target_ms) if options.use_target else None
        chosen = self._likeliest(logits)
        if target is not None:
            rows = logits.log_softmax(-1)

            def cost(architecture):
                off = abs(self.predict_ms(architecture, table) / target - 1)
                pairs = zip(rows, architecture.kernels, strict=True)
                likelihood = sum(float(row[KERNELS.index(kernel)]) for row, kernel in pairs)
                return max(0.0, off - 0.05), -likelihood

            chosen = min(self._all(), key=cost)
        return Derivation(
            architecture=dataclasses.replace(chosen, provenance=provenance_of(run, which, rule)),
            rule=rule,
            latency_ms=self.predict_ms(chosen, table),
            target_ms=target,
        )

    def inherit(self, problem, architecture):
        network = architecture.build(self.space.num_classes)
        network[0].load_state_dict(problem.weights.stem.state_dict())
        for index, kernel in enumerate(architecture.kernels):
            network[index + 1].load_state_dict(problem.weights.layers[index][KERNELS.index(kernel)].state_dict())
        network[-1].load_state_dict(problem.weights.head.state_dict())
        return network

    def _likeliest(self, logits):
        return self._made([KERNELS[index] for index in torch.as_tensor(logits).argmax(-1).tolist()])

    def _all(self):
        return [self._made(kernels) for kernels in itertools.product(KERNELS, repeat=self.space.settings.layers)]

    def _made(self, kernels):
        size, classes = self.space.input_size, self.space.num_classes
        return StackedArchitecture(kernels=tuple(kernels), num_classes=classes, input_size=size)
