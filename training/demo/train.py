"""Stage 2: the whole model on conversations, after `train_tower.py`. Run again with the same arguments to resume."""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration

from model import DenseHeads, SubjectHeads, build_model, decode, dense_loss, tower_features
from optim import RunningMean, learning_rate, make_optimizers
from pool import open_pool
from rows import KINDS, ChatBatches, RowEncoder, Rows
from scenes import HELD_OUT_SEED
from tokenizer import kept_tokenizer, token_ids
from train_tower import pick_device, save_atomically

TOWER_PACE = 0.5  # of the learning rate: the tower already knows what it sees
DENSE_WEIGHT = 0.5
SUBJECT_WEIGHT = 0.5


@dataclass
class Tally:
    """Exact answers by kind."""

    right: Tensor
    asked: Tensor

    @classmethod
    def empty(cls) -> Tally:
        return cls(torch.zeros(len(KINDS)), torch.zeros(len(KINDS)))

    def add(self, rows: Rows, logits: Tensor) -> None:
        """An answer is exact when each of its tokens is, which is what greedy decoding would then give."""
        wrong = torch.zeros(len(rows.kind), device=logits.device)
        wrong.index_add_(0, rows.answer, (logits.argmax(-1) != rows.target).float())
        kind = rows.kind.cpu()
        self.right.index_add_(0, kind, (wrong == 0).float().cpu())
        self.asked.index_add_(0, kind, torch.ones(len(kind)))

    def __str__(self) -> str:
        shares = [f"{k} {100 * r / a:.0f}" for k, r, a in zip(KINDS, self.right, self.asked, strict=True) if a]
        return f"{100 * self.right.sum() / self.asked.sum():.1f}% | " + ", ".join(shares)


def answer_loss(logits: Tensor, rows: Rows) -> Tensor:
    """Cross-entropy; tokens of an answer of n tokens weigh n ** -0.5, or descriptions would outweigh the rest."""
    each = functional.cross_entropy(logits, rows.target, reduction="none")
    lengths = torch.bincount(rows.answer, minlength=len(rows.kind)).float()
    weight = lengths[rows.answer].rsqrt()
    return (each * weight).sum() / weight.sum()


@dataclass(frozen=True, slots=True)
class Outcome:
    """One pack's share of a step."""

    gradients: tuple[Tensor, ...]
    rows: Rows
    logits: Tensor
    answers: float
    dense: float
    subject: float


class Learner:
    """The model with all that its training carries along."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = pick_device(arguments.device)
        torch.manual_seed(arguments.seed)
        self.tokenizer = kept_tokenizer(arguments.work / "tokenizer", arguments.seed)
        self.model: LlavaForConditionalGeneration = build_model(token_ids(self.tokenizer)).to(self.device)
        self.heads = DenseHeads().to(self.device)
        self.subjects = SubjectHeads().to(self.device)
        self.tower = self.model.model.vision_tower
        self.rest = nn.ModuleList([self.model.model.multi_modal_projector, self.model.model.language_model])
        self.optimizers = make_optimizers([self.tower, self.heads], 0.0) + make_optimizers([self.rest], 0.0)
        self.optimizers.append(torch.optim.AdamW(self.subjects.parameters(), weight_decay=0.0))
        trained = [self.tower, self.heads, self.rest, self.subjects]
        frozen = {id(weight) for weight in self.tower.post_layernorm.parameters()}  # behind the layer that is read
        self.weights = [w for module in trained for w in module.parameters() if id(w) not in frozen]
        # One thread per pack, each taking the next: a core that is busy elsewhere then holds up less than with
        # operations that are split evenly over all cores.
        torch.set_num_threads(1)
        self.threads = ThreadPoolExecutor(arguments.threads, initializer=torch.set_num_threads, initargs=(1,))
        self.step = 0
        self.path = arguments.work / "model.pt"
        if self.path.exists():
            state = torch.load(self.path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.subjects.load_state_dict(state["subjects"])
            self.step = state["step"]
        else:
            state = torch.load(arguments.work / "tower.pt", map_location=self.device, weights_only=True)
            self.tower.load_state_dict(state["tower"])
        self.heads.load_state_dict(state["heads"])
        self.mean = RunningMean(self.model, decay=0.99)
        if "mean" in state:
            self.mean.weights = state["mean"]

    def save(self) -> None:
        state = {"step": self.step, "model": self.model.state_dict(), "heads": self.heads.state_dict()}
        state |= {"subjects": self.subjects.state_dict()}
        state |= {"optimizers": [o.state_dict() for o in self.optimizers], "mean": self.mean.weights}
        save_atomically(state, self.path)

    def train_step(self, packs: list[Rows], tally: Tally) -> list[float]:
        """One update; returns the losses of the answers, the dense labels and the subjects."""
        rate = learning_rate(self.step, self.arguments.steps, self.arguments.lr)
        for number, optimizer in enumerate(self.optimizers):
            for group in optimizer.param_groups:
                group["lr"] = rate * (TOWER_PACE if number < 2 else 1.0)
        asked, shown = sum(len(rows.kind) for rows in packs), sum(len(rows.images) for rows in packs)
        losses = [0.0, 0.0, 0.0]
        for weight in self.weights:
            weight.grad = None
        for outcome in self.threads.map(lambda rows: self._gradients(rows, asked, shown), packs):
            for weight, gradient in zip(self.weights, outcome.gradients, strict=True):
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
            tally.add(outcome.rows, outcome.logits)
            losses = [losses[0] + outcome.answers, losses[1] + outcome.dense, losses[2] + outcome.subject]
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        list(self.threads.map(lambda optimizer: optimizer.step(), self.optimizers))
        self.step += 1
        self.mean.update(self.model, self.step)
        return losses

    def _gradients(self, rows: Rows, asked: int, shown: int) -> Outcome:
        """What `rows` add to the gradients of a step that has `asked` answers and `shown` pictures in all."""
        rows = rows.to(self.device)
        features = tower_features(self.model, rows.images)
        dense = dense_loss(self.heads(features), rows.labels)[0] * (len(rows.images) / shown)
        middle, last = decode(self.model, features, rows.ids)
        logits = self.model.lm_head(last[rows.row, rows.position])
        answers = answer_loss(logits, rows) * (len(rows.kind) / asked)
        subject = self.subjects.loss(middle[rows.starts], rows.subject) * (len(rows.kind) / asked)
        gradients = torch.autograd.grad(answers + DENSE_WEIGHT * dense + SUBJECT_WEIGHT * subject, self.weights)
        return Outcome(gradients, rows, logits.detach(), answers.item(), dense.item(), subject.item())

    @torch.no_grad()
    def examine(self, batches: ChatBatches, count: int) -> Tally:
        """Exact answers of the running mean on `count` batches."""
        own = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        self.model.load_state_dict(self.mean.weights, strict=False)
        tally = Tally.empty()
        for step in range(count):
            for rows in (rows.to(self.device) for rows in batches[step]):
                _, last = decode(self.model, tower_features(self.model, rows.images), rows.ids)
                tally.add(rows, self.model.lm_head(last[rows.row, rows.position]))
        self.model.load_state_dict(own, strict=False)
        return tally


def train(arguments: argparse.Namespace) -> None:
    learner = Learner(arguments)
    encoder = RowEncoder(learner.tokenizer)
    pool = open_pool(arguments.work / "pool", arguments.scenes)
    held = open_pool(arguments.work / "held", 500, first_seed=HELD_OUT_SEED)
    sizes = (arguments.batch - arguments.batch * 3 // 8, arguments.batch * 3 // 8)
    batches = ChatBatches(
        encoder, pool, sizes, parts=3, seed=arguments.seed, easy_steps=arguments.steps // 8, stream="train"
    )
    unseen = ChatBatches(encoder, held, (24, 8), parts=1, seed=arguments.seed, easy_steps=0, stream="held out")
    loader = DataLoader(batches, batch_size=None, sampler=range(learner.step, arguments.steps), num_workers=1)
    started, tally = time.monotonic(), Tally.empty()
    for packs in loader:
        losses = learner.train_step(packs, tally)
        if learner.step % 20 == 0:
            clock = f"{time.monotonic() - started:.0f}s"
            parts = "answers {:.3f} dense {:.3f} subject {:.3f}".format(*losses)
            print(f"{learner.step} {clock} {parts} exact {tally}", flush=True)
            tally = Tally.empty()
        if learner.step % 50 == 0 or learner.step == arguments.steps:
            learner.save()
        if learner.step % 100 == 0 or learner.step == arguments.steps:
            print(f"held out {learner.step}: {learner.examine(unseen, 4)}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures and states")
    parser.add_argument("--scenes", type=int, default=64_000, help="size of the pool of pictures")
    parser.add_argument("--steps", type=int, default=2_400)
    parser.add_argument("--batch", type=int, default=16, help="conversations a step, 3 in 8 on two pictures")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    train(parse_arguments())
