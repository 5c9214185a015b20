"""Steps of AdamW with a running average of what is trained; on a card a step is two CUDA graphs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import parallel

SMOOTHING = 0.02  # of the loss that is reported: the share of each new one
WARM_UP = 4  # steps before a step is captured


@torch.no_grad()
def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy every source over its target, unless they are the same numbers: those of equal types and layout all at once."""
    groups: dict[object, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for i, (target, source) in enumerate(zip(targets, sources, strict=True)):
        if target.data_ptr() != source.data_ptr():
            alone = i if target.stride() != source.stride() else None
            groups[target.dtype, source.dtype, alone].append((target, source))
    for pairs in groups.values():
        torch._foreach_copy_(*map(list, zip(*pairs)))


class Steps:
    """Optimizer, average and, on a card, the two CUDA graphs of a step, between which all processes share gradients.

    What a step learns from is said by a subclass, in `losses`. Without graphs a step of a network of some hundred layers is
    hundreds of launches by the host, several times as slow as the card.

    Args:
        trained: what the optimizer changes; tensors of one device.
        averaged: what the average is of.
        weight_decay: of AdamW.
        decay: of the average, after its first steps.
    """

    def __init__(self, trained: list[Tensor], averaged: list[Tensor], weight_decay: float, decay: float) -> None:
        self.trained, self.averaged, self.decay = trained, averaged, decay
        self.device = trained[0].device
        self.cuda = self.device.type == "cuda"
        self.average = [p.detach().clone() for p in averaged]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        self.rate, self.keep, self.blend, self.loss = (torch.zeros((), device=self.device) for _ in range(4))
        self.optimizer = torch.optim.AdamW(
            trained, lr=self.rate, betas=(0.9, 0.99), weight_decay=weight_decay, capturable=self.cuda, fused=self.cuda
        )
        self.steps = 0
        self.since = 0  # the step at which the average and the smoothed loss began
        self.graphs: list[torch.cuda.CUDAGraph] = []

    def losses(self) -> tuple[Tensor, Sequence[Tensor]]:
        """The loss of one random batch, and its gradient for each tensor that is trained."""
        raise NotImplementedError

    def _gradients(self) -> None:
        loss, gradients = self.losses()
        copy_all([p.grad for p in self.trained], gradients)
        self.loss.lerp_(loss.detach().float(), self.blend)

    def _share(self) -> None:
        parallel.average([p.grad for p in self.trained])

    def _update(self) -> None:
        nn.utils.clip_grad_norm_(self.trained, 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_mul_(self.average, self.keep)
            torch._foreach_add_(self.average, torch._foreach_mul([p.detach() for p in self.averaged], 1 - self.keep))

    def capture(self) -> None:
        """On a card, record a step's two halves as CUDA graphs, after warm-up steps on a side stream; they count as steps."""
        if not self.cuda:
            return
        self.rate.fill_(1e-6)
        self.keep.fill_(1.0)
        self.blend.fill_(1.0 if self.steps == self.since else SMOOTHING)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._gradients()
                self._share()
                self._update()
        torch.cuda.current_stream().wait_stream(stream)
        self.graphs = [torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()]
        mode = "thread_local"  # threads of the processes' communication may ask the card things meanwhile
        with torch.cuda.graph(self.graphs[0], capture_error_mode=mode):
            self._gradients()
        with torch.cuda.graph(self.graphs[1], pool=self.graphs[0].pool(), capture_error_mode=mode):
            self._update()
        self.steps += WARM_UP
        torch.cuda.synchronize()

    def step(self, rate: float) -> None:
        """One update at this learning rate."""
        done = self.steps - self.since
        self.rate.fill_(rate)
        self.keep.fill_(min(self.decay, (1 + done) / (10 + done)))
        self.blend.fill_(SMOOTHING if done else 1.0)
        halves = [graph.replay for graph in self.graphs] or [self._gradients, self._update]
        halves[0]()
        self._share()
        halves[1]()
        self.steps += 1

    def progress(self) -> dict:
        """What a later run resumes from, besides the trained tensors themselves."""
        return {
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "since": self.since,
            "loss": self.loss,
        }

    def go_on(self, state: dict) -> None:
        """Resume from what `progress` returned."""
        copy_all(self.average, state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.loss.copy_(state["loss"])
        self.steps, self.since = state["steps"], state["since"]
