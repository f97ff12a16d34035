"What each of two processes does in tests/test_distributed.py; started by torchrun"
import json, random, sys, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
import torch, torch.distributed as dist
from fastai.vision.all import (Callback, CategoryBlock, DataBlock, GradientAccumulation, ImageBlock, Learner, RandomSplitter, Resize, SGD,
    accuracy, get_image_files, noop,
                               num_distrib, parent_label, rank_distrib, set_seed)
from sesemi_fastai.all import ELR, Memorisation, RobustLoss, SESEMI
from sesemi_fastai.distributed import gathered
from conftest import tiny_model

class Own(Callback):
    "The rotation head's gradient of this process alone: before SESEMI averages it"
    order = SESEMI.order-1
    def after_backward(self): self.look.own.append(torch.cat([p.grad.flatten() for p in self.sesemi.rot_head.parameters()]).clone())

class Look(Callback):
    "Gradients of all parameters before each step, and the unlabeled images"
    order = 80
    def before_fit(self): self.grads,self.heads,self.own = [],[],[]
    def before_step(self):
        ps = [*self.model.parameters(), *self.sesemi.rot_head.parameters()]
        self.grads.append(torch.cat([p.grad.flatten() for p in ps]).clone())
        self.heads.append(self.grads[-1][-sum(p.numel() for p in self.sesemi.rot_head.parameters()):])

def learner(path, bn, cbs=()):
    set_seed(0)
    dls = DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(.2, seed=0),
                    item_tfms=Resize(32)).dataloaders(path, bs=4, num_workers=0)
    dls.train.rng = random.Random(0)
    torch.manual_seed(rank_distrib()) # the heads would differ if nobody took care
    sesemi = SESEMI(list(dls.train_ds.items), bn=bn, seed=0)
    set_seed(0)
    return Learner(dls, tiny_model(), opt_func=SGD, metrics=accuracy, cbs=[sesemi, Own(), Look(), RobustLoss(ELR()), Memorisation(), *cbs])

def main(path, out, bn, accumulate):
    learn = learner(path, bn, [GradientAccumulation(8)] if accumulate else [])
    with learn.torchrun_ctx(), learn.no_bar(), learn.no_logging(): learn.fit(2, .05)
    own = dict(own_head=torch.stack(learn.look.own), head_grads=torch.stack(learn.look.heads) if not accumulate else None,
               grads=torch.stack(learn.look.grads), model=torch.cat([p.detach().flatten() for p in learn.model.parameters()]),
               head=torch.cat([p.detach().flatten() for p in learn.sesemi.rot_head.parameters()]),
               targets=learn.robust_loss.loss_func_of_training.targets, passes=learn.robust_loss.loss_func_of_training.passes,
               as_given=[o['as_given'] for o in learn.memorisation.history],
               files=[str(o) for o in learn.sesemi._stream.dl.dataset.items], values=[[float(o) for o in v if o is not None] for v in learn.recorder.values],
               steps=len(learn.recorder.losses))
    ranks = gathered(own)
    if not rank_distrib(): torch.save(ranks, out)
    dist.destroy_process_group()

if __name__ == '__main__':
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == '1')
