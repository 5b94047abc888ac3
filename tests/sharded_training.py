"""Training with full sharding, for two processes of their own, which must be able to import it."""

import json

from killed_training import always_photos, meet
from torch.distributed.tensor import DTensor

from e2e_lib.training import loop


def numbers(tensors):
    """How many numbers tensors have here, and in all processes together."""
    return [sum(tensor.to_local().numel() for tensor in tensors), sum(tensor.numel() for tensor in tensors)]


def train_in_shares(rank, begun, ended, root):
    """What each of two processes does: both train ``begun`` until its first epoch is scored and saved, and then ``ended`` to
    its end, which one process began. Written into ``root`` is what each of them holds of ``begun`` then."""
    meet(rank, root)
    save = loop._Run.save

    def interrupted(self):
        save(self)
        if self.state["epoch"] == 1:
            learnt = [p for p in self.model.parameters() if p.requires_grad]
            states = [entry[name] for entry in self.optimizer.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
            assert all(isinstance(tensor, DTensor) for tensor in (*learnt, *states))
            (root / f"held-{rank}").write_text(json.dumps([numbers(learnt), numbers(states)]))
            raise KeyboardInterrupt

    loop._Run.save = interrupted
    with always_photos():
        try:
            loop.train(begun, 0, lambda _: None, root=root, data_root=root / "data")
        except KeyboardInterrupt:
            loop._Run.save = save
        loop.train(ended, 0, lambda _: None, root=root, data_root=root / "data")
